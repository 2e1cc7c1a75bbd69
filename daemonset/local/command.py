"""``ambient demo``, ``up``, ``down``, ``exec``, ``status`` and ``logs``."""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from daemonset.cluster.shell import add_cluster_arguments, with_client
from daemonset.kube.config import is_configured
from daemonset.local import run_directory
from daemonset.local.enter import EnterError, run_in
from daemonset.local.interrupts import Interrupted, interruptible
from daemonset.local.namespaces import NamespaceError
from daemonset.local.objects import TopologyError
from daemonset.local.privileges import PrivilegeError, acquire
from daemonset.local.processes import ProcessError
from daemonset.local.run_directory import Place, RunDirectoryError
from daemonset.local.show import print_table, show_logs, show_status
from daemonset.local.terminal import Terminal

Command = Callable[[argparse.Namespace], int]

_DOWN_PATIENCE = 20.0
"""Seconds that a mesh has to take itself down before it is killed (which takes it down too)."""

_SETTLING = 10.0
"""Seconds that pods have to get into the mesh before the user is told how far they are."""

_EXPECTED = (
    TopologyError,
    NamespaceError,
    ProcessError,
    PrivilegeError,
    RunDirectoryError,
    EnterError,
)


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; each sets ``run``, a function of the arguments that gives the exit code."""
    demo = subparsers.add_parser(
        "demo",
        help="a guided tour: build a mesh on this machine and watch it work",
        description="Builds two nodes and a few pods on this machine, turns the mesh on for them,"
        " and shows what that changes. Takes a few seconds and leaves nothing behind.",
    )
    demo.add_argument(
        "--keep", action="store_true", help="leave it running afterwards, to play with"
    )
    demo.set_defaults(run=_guarded(_demo))

    up = subparsers.add_parser(
        "up",
        help="run a mesh on this machine from a folder of Kubernetes YAML",
        description="Runs the nodes and pods that the YAML in FOLDER describes, and a mesh around"
        " them, until Ctrl-C. Files may be changed while it runs. What belongs to running meshes is"
        " below AMBIENT_RUN_DIR (by default /run/ambient, for users $XDG_RUNTIME_DIR/ambient).",
    )
    up.add_argument("folder", type=Path, metavar="FOLDER")
    up.add_argument("--name", help="what to call it (the folder's name)")
    up.add_argument(
        "--no-mesh", action="store_true", help="only nodes, pods and services; nothing in between"
    )
    up.set_defaults(run=_guarded(_up))

    down = subparsers.add_parser(
        "down", help="end a mesh of this machine, and tidy up after ones that were killed"
    )
    down.add_argument("name", nargs="?", help="which, when several are running")
    down.set_defaults(run=_guarded(_down))

    execute = subparsers.add_parser(
        "exec",
        help="run a command in a pod: ambient exec POD -- curl http://echo/",
        description="Runs a command in the network of a pod, with this machine's programs.",
    )
    execute.add_argument("--mesh", metavar="NAME", help="which mesh, when several are running")
    execute.add_argument("place", metavar="POD", help="pod, namespace/pod, or node/NAME for a node")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    execute.set_defaults(run=_guarded(_exec))

    status = subparsers.add_parser(
        "status",
        help="what runs, where, and how it is",
        description="Nodes, processes and pods of the mesh that runs on this machine, else of the"
        " Kubernetes cluster that the kubeconfig names (KUBECONFIG, --context).",
    )
    where = status.add_mutually_exclusive_group()
    where.add_argument("--mesh", metavar="NAME", help="which mesh, when several are running")
    where.add_argument("--kubernetes", action="store_true", help="of a cluster")
    add_cluster_arguments(status)
    status.add_argument(
        "-n", "--namespace", metavar="NAME", default="", help="only its pods (in a cluster)"
    )
    status.add_argument(
        "-a", "--all", action="store_true",
        help="also pods of namespaces that have nothing to do with the mesh (in a cluster)",
    )  # fmt: skip
    status.add_argument("-o", "--output", choices=("text", "json"), default="text",
        help="json: in a cluster only")  # fmt: skip
    status.set_defaults(run=_guarded(_status))

    why = subparsers.add_parser(
        "why",
        help="why a connection is allowed or not, and where it goes: ambient why web orders",
        description="Answers from a running mesh of this machine, a Kubernetes cluster or a folder"
        " of YAML where a connection of a pod would go and whether it is allowed, by which rule of"
        " which policy in which file. Without an option: the mesh that runs on this machine, else"
        " the cluster that the kubeconfig names. Exit status 0: allowed; 1: not, or not at every"
        " endpoint; 2: nothing of that name.",
    )
    asked = why.add_mutually_exclusive_group()
    asked.add_argument("--mesh", metavar="NAME", help="which mesh, when several are running")
    asked.add_argument(
        "--folder", type=Path, help="ask these files instead of a running mesh (no root needed)"
    )
    asked.add_argument("--kubernetes", action="store_true", help="ask a cluster's live objects")
    add_cluster_arguments(why)
    why.add_argument(
        "-n", "--namespace", metavar="NAME", default="", help="of names without one (in a cluster)"
    )
    why.add_argument("source", metavar="POD", help="who connects: pod or namespace/pod")
    why.add_argument(
        "destination",
        metavar="DESTINATION",
        help="to whom: a service, a pod (each NAME or NAMESPACE/NAME; service/NAME and pod/NAME"
        " leave no doubt), a hostname or an IP address",
    )
    why.add_argument("port", metavar="PORT", nargs="?", type=int, help="all that are known")
    why.set_defaults(run=_guarded(_why))

    logs = subparsers.add_parser(
        "logs",
        help="what the parts of a mesh and its pods have written",
        description="Without a name, lists the logs there are.",
    )
    logs.add_argument("--mesh", metavar="NAME", help="which mesh, when several are running")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as more is written")
    logs.add_argument("name", nargs="?", help="a part of a log's name: ztunnel, node-1, echo …")
    logs.set_defaults(run=_guarded(_logs))


def _guarded(command: Command) -> Command:
    """The command with expected failures as messages, not tracebacks."""

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except _EXPECTED as error:
            print(f"ambient: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return guarded


def _own_command() -> list[str]:
    """This very command line, for running it again inside a user namespace."""
    return [sys.executable, "-m", "daemonset.cli", *sys.argv[1:]]


def _demo(arguments: argparse.Namespace) -> int:
    acquire(_own_command())
    run_directory.remove_stale()
    # Imported late: the other commands should answer at once.
    from daemonset.local.demo import run_demo

    terminal = Terminal(sys.stdout)
    with interruptible():
        try:
            return run_demo(terminal, keep=arguments.keep)
        except Interrupted as interrupted:
            terminal.say(f"Ended by {interrupted}; everything is removed.")
            wanted = arguments.keep and interrupted.number == signal.SIGINT
            return 0 if wanted else 128 + interrupted.number


def _up(arguments: argparse.Namespace) -> int:
    acquire(_own_command())
    run_directory.remove_stale()
    from daemonset.local.mesh import TURN, Mesh, Settings

    terminal = Terminal(sys.stdout)
    name = arguments.name or arguments.folder.absolute().name
    settings = Settings(name=name, folder=arguments.folder, with_mesh=not arguments.no_mesh)
    with interruptible():
        try:
            with Mesh.open(settings, terminal.note) as mesh:
                started = time.monotonic()
                mesh.start()
                if settings.with_mesh:
                    mesh.wait(mesh.is_settled, _SETTLING)
                terminal.say(f"Mesh {name} is up after {time.monotonic() - started:.1f} s.")
                show_status(name)
                terminal.say("Ctrl-C ends it.")
                while True:
                    mesh.step()
                    time.sleep(TURN)
        except Interrupted as interrupted:
            terminal.say(f"Ended by {interrupted}; everything is removed.")
            return 0 if interrupted.number == signal.SIGINT else 128 + interrupted.number


def _down(arguments: argparse.Namespace) -> int:
    for name in run_directory.remove_stale():
        print(f"removed what was left of mesh {name}, which had been killed")
    if arguments.name is None and not list(run_directory.running()):
        print("no mesh is running")
        return 0
    path, description = run_directory.find(arguments.name)
    os.kill(description.pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_PATIENCE
    while description.name in run_directory.running():
        if time.monotonic() > deadline:
            os.kill(description.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    run_directory.remove_stale()
    if path.exists():
        raise RunDirectoryError(f"mesh {description.name} does not end (pid {description.pid})")
    print(f"mesh {description.name} is down")
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    _, description = run_directory.find(arguments.mesh)
    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise EnterError("which command? ambient exec POD -- COMMAND …")
    place = _find_place(arguments.place, description.nodes, description.pods)
    return run_in(description, place, command)


def _find_place(name: str, nodes: dict[str, Place], pods: dict[str, Place]) -> Place:
    from daemonset.local.topology import choose_pod

    kind, _, node = name.partition("/")
    if kind == "node" and node in nodes:
        return nodes[node]
    return pods[choose_pod(name, list(pods))]


def _status(arguments: argparse.Namespace) -> int:
    if _means_cluster(arguments):
        return _status_of_cluster(arguments)
    show_status(arguments.mesh)
    return 0


def _status_of_cluster(arguments: argparse.Namespace) -> int:
    from daemonset.cluster.status import as_data, as_tables, overview
    from daemonset.cluster.survey import take_survey
    from daemonset.kube.client import KubeClient

    async def look(client: KubeClient) -> int:
        survey = await take_survey(client, arguments.system_namespace)
        found = overview(survey, arguments.namespace, everybody=arguments.all)
        if arguments.output == "json":
            print(json.dumps(as_data(found), indent=1, ensure_ascii=False))
            return 0
        if not survey.installation.is_there:
            print(f"no mesh is installed in {arguments.system_namespace}\n")
        for header, rows in as_tables(found):
            print_table(header, rows)
        if found.elsewhere:
            print(f"{found.elsewhere} pods of other namespaces (--all shows them)")
        for unseen in found.unseen:
            print(f"ambient: not seen: {unseen}", file=sys.stderr)
        return 0

    return with_client(arguments.context, look)


def _means_cluster(arguments: argparse.Namespace) -> bool:
    """Said so, or there is no mesh on this machine and a kubeconfig names a cluster."""
    if arguments.kubernetes or arguments.context is not None or arguments.namespace:
        return True
    named = arguments.mesh is not None or getattr(arguments, "folder", None) is not None
    return not named and not list(run_directory.running()) and is_configured()


def _why_in_cluster(arguments: argparse.Namespace) -> int:
    from daemonset.cluster.live import read_live, why_live
    from daemonset.kube.client import KubeClient

    async def ask(client: KubeClient) -> int:
        live = await read_live(client, arguments.system_namespace)
        for problem in live.problems:
            print(f"ambient: {problem}", file=sys.stderr)
        code, lines = why_live(
            live,
            arguments.namespace,
            arguments.source,
            arguments.destination,
            arguments.port,
        )
        print("\n".join(lines), file=sys.stderr if code == 2 else sys.stdout)
        return code

    return with_client(arguments.context, ask, failed=2)


def _why(arguments: argparse.Namespace) -> int:
    if _means_cluster(arguments):
        return _why_in_cluster(arguments)
    from daemonset.local.why import why

    code, lines = why(
        arguments.mesh,
        arguments.folder,
        arguments.source,
        arguments.destination,
        arguments.port,
    )
    print("\n".join(lines), file=sys.stderr if code == 2 else sys.stdout)
    return code


def _logs(arguments: argparse.Namespace) -> int:
    with contextlib.suppress(KeyboardInterrupt):
        return show_logs(arguments.mesh, arguments.name, follow=arguments.follow)
    return 0
