"""``ambient control-plane --source kubernetes``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import sys

import trio

from daemonset.control_plane import farewell
from daemonset.control_plane.ca.issuer import AuthorityError
from daemonset.control_plane.ca.lifetimes import read_lifetimes
from daemonset.control_plane.config import ServingConfig
from daemonset.control_plane.kubernetes_backend import KubernetesBackend, Replica
from daemonset.control_plane.other_planes import OtherControlPlaneError
from daemonset.control_plane.server import ControlPlane, run_until_signal
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient, leaves
from daemonset.kube.config import KubeConfigError, find_config

SERVICE = "ambient-control-plane"
NAMESPACE = "ambient-system"


def serve_kubernetes(arguments: argparse.Namespace, settings: MeshSettings) -> int:
    """Serve a cluster until a signal; the exit status."""
    # The API server gives Services their addresses.
    settings = dataclasses.replace(settings, service_ips=None)
    if arguments.ca is not None:
        print("--ca is for folders: on Kubernetes put it into Secret cacerts", file=sys.stderr)
        return 1
    replica = Replica(
        os.environ.get("POD_NAMESPACE", NAMESPACE),
        # Two processes of one name on one machine are two candidates all the same.
        os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        farewell.PORT,
    )
    config = serving_config(arguments, settings, replica.namespace)
    code = 0
    try:
        client = KubeClient(find_config(arguments.context))
        trio.run(_serve, client, config, replica)
    except* (
        KubeConfigError,
        AuthorityError,
        OtherControlPlaneError,
        ApiError,
        ApiUnavailableError,
        OSError,
    ) as group:
        for error in leaves(group):
            print(error, file=sys.stderr)
        code = 1
    return code


def serving_config(
    arguments: argparse.Namespace, settings: MeshSettings, namespace: str
) -> ServingConfig:
    """What the arguments say; ``namespace`` is the control plane's own."""
    service = f"{SERVICE}.{namespace}.svc"
    own_names = (service, f"{service}.{settings.cluster_domain}")
    return ServingConfig(
        settings=settings,
        address=arguments.address,
        xds_port=None if arguments.no_plaintext else arguments.xds_port,
        tls_port=arguments.tls_port,
        status_port=arguments.status_port,
        server_names=(*own_names, *arguments.server_name),
        node_proxies=frozenset(arguments.node_proxy)
        or frozenset({f"{namespace}/ztunnel", f"{settings.root_namespace}/ztunnel"}),
        # Node agents say by an annotation which pods they have captured.
        agents_report=True,
        lifetimes=read_lifetimes(arguments),
    )


async def _serve(client: KubeClient, config: ServingConfig, replica: Replica) -> None:
    try:
        backend = await KubernetesBackend.open(client, config.settings, replica)
        await run_until_signal(ControlPlane(config, backend=backend))
    finally:
        with trio.CancelScope(shield=True):
            await client.forget_idle()
