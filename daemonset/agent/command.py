"""``ambient node-agent``: what the DaemonSet runs on each node."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import trio

from daemonset.agent.agent import AgentConfig
from daemonset.agent.capture import CaptureError
from daemonset.agent.cni_install import CniFolders
from daemonset.agent.enrolment import (
    DEFAULT_SELECTORS,
    EnrolmentOptions,
    SelectorError,
    parse_selectors,
)
from daemonset.agent.mark import MarkError
from daemonset.agent.node_agent import NodeAgent, NodeAgentConfig
from daemonset.agent.owners import NotAloneError
from daemonset.agent.stops import VARIABLE, read_uncaptured
from daemonset.kube.client import ApiError, KubeClient, leaves
from daemonset.kube.config import KubeConfigError, find_config

_EXPECTED = (
    OSError,
    MarkError,
    CaptureError,
    NotAloneError,
    ApiError,
    KubeConfigError,
    SelectorError,
    ValueError,
)


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``node-agent``; it sets ``run``, a function of the arguments that gives the exit code."""
    parser = subparsers.add_parser(
        "node-agent",
        help="the agent of one node of a cluster (its DaemonSet runs it)",
        description="Captures the traffic of the node's pods that are in the mesh, and tells"
        " ztunnel of them. Needs root in the node's network namespace, and the node's /proc.",
    )
    add = parser.add_argument
    environment = os.environ.get
    add("--node", default=environment("NODE_NAME"), help="the node's name (NODE_NAME)")
    add("--context", help="of the kubeconfig, outside a cluster")
    add("--run-dir", type=Path, default=Path("/var/run/ambient"), metavar="FOLDER",
        help="for its mark and its status, gone with the boot (%(default)s)")  # fmt: skip
    add("--state-dir", type=Path, default=Path("/var/lib/ambient"), metavar="FOLDER",
        help="survives a reboot (%(default)s)")  # fmt: skip
    add("--zds", type=Path, default=Path("/var/run/ztunnel/ztunnel.sock"), metavar="SOCKET",
        help="where ztunnel connects (%(default)s)")  # fmt: skip
    add("--proc", type=Path, default=Path("/proc"), metavar="FOLDER", help="the node's own /proc")
    add("--root", type=Path, default=Path("/"), metavar="FOLDER", help="the node's file system")
    add("--host-netns", default="", metavar="PATH",
        help="the node's network namespace, where the agent runs in another")  # fmt: skip
    add(
        "--cni-plugin",
        type=Path,
        metavar="FILE",
        help="the CNI plugin to install; without it pods start before they are captured",
    )
    add("--cni-bin", type=Path, default=Path("/opt/cni/bin"), metavar="FOLDER",
        help="where the node's CNI plugins are (%(default)s)")  # fmt: skip
    add("--cni-conf", type=Path, default=Path("/etc/cni/net.d"), metavar="FOLDER",
        help="where the node's CNI configuration is (%(default)s)")  # fmt: skip
    add("--excluded-namespaces", metavar="A,B",
        default=environment("EXCLUDE_NAMESPACES", "kube-system"),
        help="whose pods are never in the mesh (EXCLUDE_NAMESPACES, else kube-system)")  # fmt: skip
    add("--system-namespace", default=environment("SYSTEM_NAMESPACE", "ambient-system"),
        metavar="NAME",
        help="of ztunnel and this agent (SYSTEM_NAMESPACE, else ambient-system)")  # fmt: skip
    add("--selectors", metavar="YAML", default=environment("AMBIENT_ENABLEMENT_SELECTOR", ""),
        help="which pods are in the mesh (AMBIENT_ENABLEMENT_SELECTOR)")  # fmt: skip
    add("--revision", metavar="NAME", default=environment("REVISION", "default"),
        help="pods with another label istio.io/rev are left alone (REVISION)")  # fmt: skip
    add("--pod", metavar="NAME", default=environment("POD_NAME", ""),
        help="this agent's own, which carries its report (POD_NAME)")  # fmt: skip
    add("--no-dns-capture", action="store_true",
        default=environment("AMBIENT_DNS_CAPTURE", "true") == "false",
        help="pods ask their nameservers themselves (AMBIENT_DNS_CAPTURE=false)")  # fmt: skip
    add("--istio-mark", action="store_true", default=environment("ISTIO_MARK", "") == "true",
        help="Istio's own ztunnel runs here (ISTIO_MARK=true)")  # fmt: skip
    add("--uncaptured", metavar="stop|permit", default=environment(VARIABLE, "stop"),
        help="whether the traffic of pods in the mesh that cannot be captured is stopped, or goes"
        f" on outside the mesh ({VARIABLE})")  # fmt: skip
    add(
        "--health-port",
        type=int,
        metavar="PORT",
        default=8000,
        help="/healthz and /readyz (%(default)s)",
    )
    add("--metrics-port", type=int, metavar="PORT", default=15014, help="/metrics (%(default)s)")
    add("--daemon-set", metavar="NAME", default=environment("DAEMON_SET", ""),
        help="what runs us; pods leave the mesh when it is deleted (DAEMON_SET)")  # fmt: skip
    parser.set_defaults(run=_serve)


def read_config(arguments: argparse.Namespace) -> NodeAgentConfig:
    """Raises SelectorError, ValueError."""
    if not arguments.node:
        raise ValueError("the node has no name: --node or NODE_NAME")
    excluded = tuple(name for name in arguments.excluded_namespaces.split(",") if name)
    text = arguments.selectors
    selectors = parse_selectors(text) if text else DEFAULT_SELECTORS
    options = EnrolmentOptions(
        selectors,
        frozenset(excluded),
        arguments.system_namespace,
        not arguments.no_dns_capture,
        arguments.revision,
    )
    cni = None
    if arguments.cni_plugin is not None:
        cni = CniFolders(arguments.cni_plugin, arguments.cni_bin, arguments.cni_conf)
    return NodeAgentConfig(
        node=arguments.node,
        agent=AgentConfig(
            arguments.run_dir,
            arguments.zds,
            options,
            arguments.istio_mark,
            arguments.host_netns,
            arguments.proc,
            read_uncaptured(arguments.uncaptured),
        ),
        cni=cni,
        state_dir=arguments.state_dir,
        root=arguments.root,
        excluded_from_plugin=(*excluded, arguments.system_namespace),
        health_port=arguments.health_port,
        metrics_port=arguments.metrics_port,
        agent_ns=arguments.system_namespace,
        daemon_set=arguments.daemon_set,
        pod=arguments.pod,
        pods=options,
    )


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    code = 0
    try:
        config = read_config(arguments)
        client = KubeClient(find_config(arguments.context))
        trio.run(_run_until_signal, NodeAgent(config, client))
    except* _EXPECTED as group:
        for error in leaves(group):
            print(f"ambient node-agent: {error}", file=sys.stderr)
        code = 1
    return code


async def _run_until_signal(agent: NodeAgent) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    stop.set()

            nursery.start_soon(wait_for_signal)
            await agent.run(stop)
            nursery.cancel_scope.cancel()
