"""The environment -> :class:`Config`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from ztunnel.config import rules, values
from ztunnel.config.control import read_ca, read_node, read_token, read_xds
from ztunnel.config.data import read_dns, read_kernel, read_sockets, read_telemetry, read_tunnel
from ztunnel.config.mesh_file import MESH_CONFIG_PATH, ProxyConfig, read_proxy_config
from ztunnel.config.model import Config, ProxyMode, UnknownPolicy, WorkloadName
from ztunnel.config.reader import ConfigError, Reader


def load(environment: Mapping[str, str] | None = None) -> Config:
    """Reads the environment of this process, or ``environment``.

    Raises:
        ConfigError: with every problem that was found, each naming the variable, the value and
            what is allowed.
    """
    problems: list[str] = []
    mesh_config = None
    try:
        mesh_config = MESH_CONFIG_PATH.read_text()
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{MESH_CONFIG_PATH}: {error}")
    environment = os.environ if environment is None else environment
    reader, config = load_with(environment, mesh_config, len(os.sched_getaffinity(0)))
    problems += reader.problems
    if problems:
        raise ConfigError(problems)
    return config


def load_with(
    environment: Mapping[str, str], mesh_config: str | None, cores: int
) -> tuple[Reader, Config]:
    """The same from given sources. The configuration is only good while the reader has noted no
    problems."""
    reader = Reader(environment)
    inline = reader.optional_text(
        "PROXY_CONFIG",
        f"Proxy configuration as YAML or JSON, over {MESH_CONFIG_PATH}: discoveryAddress, "
        "proxyAdminPort, statsPort, concurrency, proxyMetadata.",
    )
    proxy = read_proxy_config(inline, mesh_config, reader.problems)
    mode = reader.choice(
        "PROXY_MODE", ProxyMode.SHARED, "Serve all pods of a node, or one workload."
    )
    dns = read_dns(reader, proxy)
    config = Config(
        proxy_enabled=reader.boolean("ENABLE_PROXY", True, "Proxy traffic at all."),
        mode=mode,
        workload=_workload(reader, mode),
        workers=_workers(reader, proxy, cores),
        inpod_socket=Path(
            reader.text(
                "INPOD_UDS",
                "/var/run/ztunnel/ztunnel.sock",
                "Socket of the node agent that hands over the pods' network namespaces.",
            )
        ),
        socks5=reader.boolean("UNSTABLE_ENABLE_SOCKS5", False, "Serve SOCKS5 on 127.0.0.1:15080."),
        unknown_policy=reader.choice(
            "ZTUNNEL_UNKNOWN_POLICY",
            UnknownPolicy.DENY,
            "What becomes of connections to a workload that names a policy which is not known. "
            "allow is Istio's behaviour.",
        ),
        termination_deadline=_termination_deadline(reader),
        token=read_token(reader),
        node=read_node(reader, proxy),
        xds=read_xds(reader, proxy, dns),
        ca=read_ca(reader, proxy),
        sockets=read_sockets(reader, mode),
        tunnel=read_tunnel(reader),
        kernel=read_kernel(reader),
        dns=dns,
        telemetry=read_telemetry(reader, proxy),
    )
    _refuse_what_cannot_apply(reader)
    reader.reject_unknown()
    if not config.sockets.port_reuse and config.workers > 1:
        config = dataclasses.replace(config, workers=1)
        if "ZTUNNEL_WORKER_THREADS" in environment:
            reader.problems.append(
                "INPOD_PORT_REUSE=false lets one worker listen: set ZTUNNEL_WORKER_THREADS=1"
            )
    return reader, config


def _workload(reader: Reader, mode: ProxyMode) -> WorkloadName | None:
    def parse(text: str) -> WorkloadName | None:
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError("allowed is namespace/name/serviceaccount")
        return WorkloadName(*parts)

    before = len(reader.problems)
    workload = reader.read(
        "PROXY_WORKLOAD_INFO",
        None,
        parse,
        "The workload of dedicated mode, where it is mandatory.",
        "namespace/name/serviceaccount",
    )
    if mode is ProxyMode.DEDICATED and workload is None and len(reader.problems) == before:
        reader.problems.append("PROXY_MODE=dedicated needs PROXY_WORKLOAD_INFO")
    return workload


def _workers(reader: Reader, proxy: ProxyConfig, cores: int) -> int:
    node_cores = reader.read(
        "ZTUNNEL_CPU_LIMIT",
        float(cores),
        values.cpu_quantity,
        "Cores that count as all of them (the downward API gives those of the node where the "
        "container has no limit).",
        "cores",
        "the node's cores",
    )
    limit = reader.read(
        "ZTUNNEL_RESOURCE_CPU_LIMIT",
        None,
        values.cpu_quantity,
        "The CPU limit of the container, where it has one.",
        "cores",
    )
    request = reader.read(
        "ZTUNNEL_RESOURCE_CPU_REQUEST",
        None,
        values.cpu_quantity,
        "The CPU request of the container.",
        "cores",
    )
    cores = max(1, int(node_cores + 0.999))
    automatic = rules.automatic_workers(cores, limit, request)
    if proxy.concurrency is not None:
        automatic = proxy.concurrency or cores
    return reader.read(
        "ZTUNNEL_WORKER_THREADS",
        automatic,
        lambda text: values.worker_threads(text, cores),
        "Worker processes. Unset: the proxy configuration's concurrency, else the container's CPU "
        "limit, else the largest of a quarter of the cores, the CPU request and 2.",
        "a number, a share such as 50%, or 0 for all cores",
        "automatic",
    )


def _termination_deadline(reader: Reader) -> float:
    explicit = reader.duration(
        "CONNECTION_TERMINATION_DEADLINE", "5s", "What live connections get when draining."
    )
    grace = reader.read(
        "TERMINATION_GRACE_PERIOD_SECONDS",
        None,
        lambda text: values.integer(text, 0, 10**9),
        "The pod's grace period; unless CONNECTION_TERMINATION_DEADLINE is set, connections get "
        "this less 5 s (less 1 s up to 10 s), and at least 1 s.",
        "seconds",
    )
    if grace is None or "CONNECTION_TERMINATION_DEADLINE" in reader.environment:
        return explicit
    return rules.termination_deadline(grace)


def _refuse_what_cannot_apply(reader: Reader) -> None:
    reader.unsupported("TLS12_ENABLED", "false", "only TLS 1.3 is spoken.")
    reader.unsupported(
        "COMPLIANCE_POLICY", "", "the TLS library of Python offers no choice of key exchange."
    )
    reader.unsupported("FAKE_CA", "false", "certificates always come from an authority.")
    reader.unsupported("INPOD_ENABLED", "true", "traffic is captured in pods only.")
