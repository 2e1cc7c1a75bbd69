"""A node's agent in a mesh on one machine: the same agent as in a cluster, another source of pods.

What pods should be comes from the control plane, as from a cluster's API; what they are (addresses,
namespaces) from the mesh that runs them. Which of them are captured goes to the control plane.
"""

import argparse
import json
import logging
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from daemonset.agent.agent import Agent, AgentConfig
from daemonset.agent.capture import CaptureError
from daemonset.agent.mark import MarkError
from daemonset.agent.pods import Pod
from daemonset.agent.status import AgentStatus, PodState
from daemonset.local.shared_files import (
    PodsFile,
    WantedFile,
    WatchedFile,
    acknowledged_file,
    agent_folder,
    captured_file,
    zds_socket,
)

LOOK = 0.05
"""Seconds between two looks at what pods should be and what they are."""

_OUTSIDE = (PodState.NOT_IN_MESH, PodState.LEAVING)


class LocalPods:
    """The pods of one node: a source for the agent."""

    def __init__(self, run: Path, node: str) -> None:
        self._wanted = WantedFile(run)
        self._made = PodsFile(run)
        self._node = node

    async def pods(self) -> AsyncGenerator[Sequence[Pod], None]:
        """All pods at once, and again after each change. Raises OSError."""
        self._has_changed()
        yield list(self._list())
        while True:
            await trio.sleep(LOOK)
            if self._has_changed():
                yield list(self._list())

    def _has_changed(self) -> bool:
        # Both are asked each time: the one must not hide the other's change.
        wanted, made = self._wanted.has_changed(), self._made.has_changed()
        return wanted or made

    def _list(self) -> Iterator[Pod]:
        made = self._made.read()
        for pod in self._wanted.read():
            known = made.get(f"{pod.namespace}/{pod.name}")
            if pod.node == self._node and known is not None:
                yield Pod(
                    uid=known.uid,
                    name=pod.name,
                    namespace=pod.namespace,
                    service_account=pod.service_account,
                    addresses=known.addresses,
                    labels=pod.labels,
                    annotations=pod.annotations,
                    namespace_labels=pod.namespace_labels,
                    host_network=pod.host_network,
                    netns=known.netns,
                )


def captured_now(before: frozenset[str], status: AgentStatus) -> frozenset[str]:
    """Pure: which pods are in the mesh, given which were.

    A pod that was enrolled stays in it while its ztunnel is away or its rules are being repaired:
    what is sent to it meanwhile must be refused, not sent in the clear.
    """
    found: set[str] = set()
    for pod in status.pods:
        key = f"{pod.namespace}/{pod.name}"
        if pod.state is PodState.ENROLLED or (key in before and pod.state not in _OUTSIDE):
            found.add(key)
    return frozenset(found)


async def _report_captured(agent: Agent, file: WatchedFile, before: frozenset[str]) -> None:
    known: frozenset[str] | None = None
    while True:
        now = captured_now(before, agent.status)
        if now != known:
            file.replace(json.dumps(sorted(now)))
            before = known = now
        await agent.wait_status_changed()


async def _everybody_told(acknowledged: Path, pod: Pod) -> None:
    """Returns when no proxy takes the pod for captured any more."""
    while _is_captured_for_somebody(acknowledged, f"{pod.namespace}/{pod.name}"):  # noqa: ASYNC110
        await trio.sleep(LOOK)


def _is_captured_for_somebody(acknowledged: Path, pod: str) -> bool:
    return acknowledged.exists() and pod in json.loads(acknowledged.read_text())


async def _run(agent: Agent, source: LocalPods, captured: Path) -> None:
    # An agent before this one may have captured pods, and what it did is still in force.
    before = frozenset(json.loads(captured.read_text()) if captured.exists() else ())  # noqa: ASYNC240
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run, source)
        nursery.start_soon(_report_captured, agent, WatchedFile(captured), before)


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``agent``; it sets ``run``, a function of the arguments that gives the exit code."""
    agent = subparsers.add_parser(
        "agent",
        help="one node's agent of a mesh on this machine (`up` and `demo` start it)",
        description="Captures the traffic of one node's pods. Must run in the node's network"
        " namespace; `ambient up` and `ambient demo` start one for each node.",
    )
    agent.add_argument(
        "--run", dest="run_dir", type=Path, required=True, metavar="FOLDER", help="of the mesh"
    )
    agent.add_argument("--node", required=True, metavar="NAME", help="whose agent it is")
    agent.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Run the agent until a signal ends it; the exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    code = 0
    run, node = arguments.run_dir, arguments.node
    try:
        config = AgentConfig(agent_folder(run, node), zds_socket(run, node))
        agent = Agent(config, told=partial(_everybody_told, acknowledged_file(run)))
        trio.run(_run, agent, LocalPods(run, node), captured_file(run, node))
    except* (OSError, MarkError, CaptureError) as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        code = 1
    return code
