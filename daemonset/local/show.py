"""What ``ambient status`` and ``ambient logs`` print."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from daemonset.agent.status import AgentStatus, PodState, PodStatus
from daemonset.local import run_directory
from daemonset.local.run_directory import RunDirectoryError
from daemonset.local.shared_files import FindingsFile, agent_of

_LOOK = 0.2


def show_status(name: str | None) -> None:
    """Nodes, the mesh's processes, pods and findings, as tables. Raises RunDirectoryError."""
    path, mesh = run_directory.find(name)
    print(f"mesh {mesh.name}, from {mesh.folder} (logs: {path / 'logs'})\n")
    agents = {node: status for node in mesh.nodes if (status := agent_of(path, node)) is not None}
    in_mesh = {
        f"{pod.namespace}/{pod.name}": pod for status in agents.values() for pod in status.pods
    }
    print_table(
        ("NODE", "ADDRESSES", "ZTUNNEL"),
        [
            (node, " ".join(place.addresses), ztunnel_in_words(agents.get(node)))
            for node, place in mesh.nodes.items()
        ],
    )
    print_table(("PROCESS", "STATE"), list(mesh.processes.items()))
    rows = []
    for key, place in mesh.pods.items():
        states = [f"{name} {state}" for name, state in place.containers.items()]
        row = (key, place.node, " ".join(place.addresses), pod_in_words(in_mesh.get(key)))
        rows.append((*row, "; ".join(states) or "no process"))
    print_table(("POD", "NODE", "ADDRESSES", "MESH", "CONTAINERS"), rows)
    findings = FindingsFile(path).read()
    print_table(("WHAT IS WRONG WITH THE FOLDER",), [(text,) for text in findings])


def ztunnel_in_words(agent: AgentStatus | None) -> str:
    """What a node's agent says of the proxy below it."""
    if agent is None:
        return "-"
    if not agent.ztunnels:
        return "not connected to the agent"
    return "knows its pods" if agent.synchronised else "is being told its pods"


def pod_in_words(pod: PodStatus | None) -> str:
    """What its node's agent says of a pod."""
    if pod is None:
        return "-"
    repaired = f" (capture repaired {pod.repairs} times)" if pod.repairs else ""
    if pod.state is PodState.ENROLLED:
        return f"in{repaired}"
    return f"{'out' if pod.state is PodState.NOT_IN_MESH else pod.state.value}: {pod.reason}"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they need to be; nothing at all when there are no rows."""
    everything = [header, *rows]
    if len(everything) == 1:
        return
    widths = [max(len(row[column]) for row in everything) for column in range(len(header))]
    for row in everything:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("   ".join(cells).rstrip())
    print()


def show_logs(name: str | None, part: str | None, *, follow: bool) -> int:
    """List the logs, or print those whose path contains *part*; the exit status.

    Raises:
        RunDirectoryError: no such mesh, or no such log.
    """
    path, _ = run_directory.find(name)
    root = path / "logs"
    everything = sorted(root.rglob("*.log"))
    if part is None:
        for log in everything:
            print(f"{log.relative_to(root)}  ({log.stat().st_size} bytes)")
        return 0
    chosen = [log for log in everything if part in str(log.relative_to(root))]
    if not chosen:
        names = ", ".join(str(log.relative_to(root)) for log in everything)
        raise RunDirectoryError(f"no log has {part!r} in its name; there are {names}")
    positions = dict.fromkeys(chosen, 0)
    while True:
        for log in chosen:
            positions[log] = _print_from(log, root, positions[log], headed=len(chosen) > 1)
        if not follow:
            return 0
        time.sleep(_LOOK)


def _print_from(log: Path, root: Path, position: int, *, headed: bool) -> int:
    """Print the whole lines after *position*; the position behind them."""
    with log.open("rb") as file:
        file.seek(position)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    if whole and headed:
        print(f"==> {log.relative_to(root)} <==")
    if whole:
        print(whole.decode(errors="replace"), end="", flush=True)
    return position + len(whole)
