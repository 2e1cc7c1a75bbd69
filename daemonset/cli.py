"""``ambient``: the one command for people."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

_ROOMS = {
    "daemonset.local.command": ("demo", "up", "down", "exec", "status", "why", "logs"),
    "daemonset.cluster.command": ("check", "uninstall"),
    "daemonset.control_plane.command": ("control-plane", "validate", "token", "rotate-root"),
    "daemonset.local.node_agent": ("agent",),
    "daemonset.agent.command": ("node-agent",),
}
"""Room -> the commands it adds with ``add_parsers(subparsers)``; each parser sets ``run``, a
function of the arguments that gives the exit code."""

_DESCRIPTION = """\
ambientd: a service mesh without sidecars. It encrypts what pods say to each other (mutual TLS, with
an identity for each service account) and lets through only what policies allow, without a change
to the applications.

New here?   ambient demo              a tour on this machine: a few seconds, nothing to set up
Then        ambient up FOLDER         your own folder of Kubernetes YAML, on this machine
            ambient validate FOLDER   what is wrong with it
Kubernetes  ambient check             what is wrong with a cluster, before and after installing
            ambient status            its nodes and pods, and how they are
"""


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; with the name of a command, only the room that has it is imported."""
    whole = argparse.ArgumentParser(
        prog="ambient",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"ambient {version('ambientd')}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    owners = [room for room, names in _ROOMS.items() if command in names]
    for room in owners or _ROOMS:
        importlib.import_module(room).add_parsers(commands)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        chosen = parser(words[0] if words else None).parse_args(words)
        code: int = chosen.run(chosen)
    except KeyboardInterrupt:  # before the command had anything to clean up, or after
        print(file=sys.stderr)
        return 128 + signal.SIGINT
    return code


if __name__ == "__main__":
    sys.exit(main())
