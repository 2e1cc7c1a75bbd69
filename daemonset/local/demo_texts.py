"""The longer texts of the demo."""

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from daemonset.local.terminal import WIDTH

CLUSTER = (
    "Two nodes with a wire between them, and six pods with addresses of their own, in which real"
    " applications run: namespace shop (web, two catalogs, orders) and namespace street (a visitor"
    " and a busker). A control plane reads a folder of Kubernetes YAML; each node has an agent and"
    " a ztunnel, the proxy that will carry the pods' traffic. Nothing is in the mesh yet."
)

LABELS = "Nothing else is needed; on Kubernetes, `kubectl label namespace` writes the same label."

POLICY = (
    "So far everybody may talk to everybody. An AuthorizationPolicy will say that only the service"
    " account of web may talk to the orders. Two connections are open before it is written."
)

GOODBYE = (
    "Everything is gone again: processes, networks, files."
    " `ambient demo --keep` leaves it running, to play with."
)


def ask(place: str, arguments: str) -> str:
    """The command by which somebody asks from a pod what the demo asks."""
    return f"ambient exec {place} -- python -m daemonset.local.app get {arguments}"


def things_to_try(folder: Path, policies: Path) -> Iterator[tuple[str, str]]:
    """Commands for a mesh that was kept, and what each is about."""
    yield _get("web", "http://orders/"), "a request from pod web, through the mesh"
    yield (
        f"cp {policies}/nobody-from-the-street.yaml {folder}/",
        "a policy: nobody from the street; remove the file to take it back",
    )
    yield _get("busker", "http://catalog.shop/"), "which it refuses"
    yield (
        f"cp {policies}/strict.yaml {folder}/",
        "and no connection to the shop without the mesh (the visitor left it)",
    )
    yield f"ls {folder}", "all the YAML of this mesh: change it, and the mesh follows"
    yield "ambient status", "what runs where"
    yield "ambient logs -f ztunnel", "the access log: who connected to whom, and what was refused"
    yield (
        _get("node/node-1", "http://localhost:15020/metrics"),
        "metrics for Prometheus; the state of the proxy is on port 15000",
    )


def _get(place: str, url: str) -> str:
    """With the tool that everybody knows, where the machine has it."""
    return f"ambient exec {place} -- curl -s {url}" if shutil.which("curl") else ask(place, url)


def wrapped(line: str) -> list[str]:
    """One long log line, for reading."""
    return textwrap.wrap(
        line.replace("\t", " "),
        WIDTH - 4,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
