"""The longer texts of the demo."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from daemonset.local.terminal import WIDTH

INTRODUCTION = (
    "A service mesh encrypts what applications say to each other, gives each of them an identity"
    " that it can prove, and decides who may talk to whom, without a change to any of them. This"
    " builds a small cluster on this machine and switches a mesh on in it. Everything that is"
    " printed below has just been measured."
)

CLUSTER = (
    "Two nodes (machines) with a wire between them, and six pods (applications with a network"
    " address of their own): web, two catalogs and orders in the namespace shop, a visitor and a"
    " busker in the namespace street. Around them the mesh: a control plane that reads a folder of"
    " Kubernetes YAML and issues certificates, and on each node an agent and a ztunnel, the proxy"
    " that will carry the pods' traffic. No pod is in the mesh yet."
)

LABELS = "Nothing else is needed; on Kubernetes, `kubectl label namespace` writes the same label."

IDENTITIES = (
    "Both ends have shown a certificate. The name in it says whose it is (namespace and service"
    " account), and both proxies have verified the other's:"
)

POLICY = (
    "So far everybody may talk to everybody. This file will let only web (by its identity, not its"
    " address) talk to the orders. Two connections are open before it is written."
)


def program() -> str:
    """How this command is called from here: what is printed must work when it is typed."""
    own = Path(sys.executable).with_name("ambient")
    found = shutil.which("ambient")
    if found is not None and own.exists() and os.path.samefile(found, own):
        return "ambient"
    if not own.exists():
        return f"{sys.executable} -m daemonset.cli"
    here = Path.cwd()
    below = own.is_relative_to(here) and here != Path("/")
    return str(own.relative_to(here) if below else own)


def goodbye() -> str:
    """What is said at the end of a demo that was not kept."""
    return (
        f"Everything is gone again: processes, networks, files. `{program()} demo --keep` leaves it"
        " running, to play with."
    )


def ask(place: str, arguments: str) -> str:
    """The command by which somebody asks from a pod what the demo asks."""
    return f"{program()} exec {place} -- python -m daemonset.local.app get {arguments}"


def policy_lines(text: str) -> Iterator[str]:
    """A file without its comments, for showing."""
    return (line for line in text.splitlines() if not line.startswith("#"))


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
    yield f"{program()} status", "what runs where, who is in the mesh, what is wrong"
    yield f"{program()} why visitor orders", "why a connection is refused: policy, file and line"
    yield (
        f"{program()} logs -f ztunnel",
        "the access log: who connected to whom, and what was refused",
    )
    yield (
        _get("node/node-1", "http://localhost:15020/metrics"),
        "metrics for Prometheus; the state of the proxy is on port 15000",
    )


def _get(place: str, url: str) -> str:
    """With the tool that everybody knows, where the machine has it."""
    if shutil.which("curl"):
        return f"{program()} exec {place} -- curl -sS {url}"
    return ask(place, url)


def wrapped(line: str) -> list[str]:
    """One long log line, for reading."""
    return textwrap.wrap(
        line.replace("\t", " "),
        WIDTH - 4,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
