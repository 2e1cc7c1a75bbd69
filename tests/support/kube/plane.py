"""A control plane on a test's cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from daemonset.control_plane.config import ServingConfig
from daemonset.control_plane.kubernetes_backend import KubernetesBackend, Replica
from daemonset.control_plane.server import ControlPlane, Ports
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import KubeClient
from daemonset.kube.config import from_kubeconfig, in_pod
from daemonset.kube.lease import LeaseTimes
from daemonset.kube.reflector import Pace
from tests.support.kube.cluster import Cluster

PATIENCE = 120.0
QUICK = Pace(first_pause=0.05, longest_pause=1.0, absent=0.5, relist=0.2, settle=0.1)
QUICK_LEASE = LeaseTimes(duration=4.0, step_down=3.0, look=0.3)
SETTINGS = MeshSettings()


@dataclass(frozen=True)
class Running:
    """A control plane that serves."""

    plane: ControlPlane
    backend: KubernetesBackend
    ports: Ports


@asynccontextmanager
async def client_of(cluster: Cluster, account: Path | None = None) -> AsyncIterator[KubeClient]:
    """A client with all rights, or with those of a pod that finds ``account`` mounted."""
    environment = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(cluster.port),
    }
    config = (
        in_pod(environment, account)
        if account is not None
        else from_kubeconfig(str(cluster.kubeconfig), None)
    )
    client = KubeClient(config)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await client.forget_idle()


@asynccontextmanager
async def control_plane(
    cluster: Cluster,
    name: str = "replica-1",
    settings: MeshSettings = SETTINGS,
    account: Path | None = None,
) -> AsyncIterator[Running]:
    """One replica, on free ports, with all rights or those of ``account``. The namespaces
    istio-system and ambient-system must exist."""
    config = ServingConfig(
        settings=settings, xds_port=None, tls_port=0, status_port=0, agents_report=True
    )
    async with (
        client_of(cluster, account) as client,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(PATIENCE):
            replica = Replica("ambient-system", name)
            backend = await KubernetesBackend.open(client, settings, replica, QUICK, QUICK_LEASE)
            plane = ControlPlane(config, backend=backend)
            ports = await nursery.start(plane.run)
        yield Running(plane, backend, ports)
        nursery.cancel_scope.cancel()
