"""Istio's control plane and ours, asked for the same."""

from __future__ import annotations

import pprint
from typing import Any

import trio

from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.istio.comparison import Served, ask, differences
from tests.support.istio.istiod import Istiod
from tests.support.istio.objects import token_of
from tests.support.kube.cluster import Cluster
from tests.support.kube.plane import Running, control_plane

PATIENCE = 60.0


async def agree(
    mesh: Cluster, istiod: Istiod, settings: MeshSettings, wanted: dict[str, tuple[Any, Any]]
) -> None:
    """Wait until istiod and our control plane, on one API server, differ in what is wanted and in
    nothing else.

    Args:
        settings: of ours.
        wanted: as `differences` puts it.
    """
    tokens = {
        node: await trio.to_thread.run_sync(token_of, mesh, "istio-system", f"ztunnel-{node[-1]}")
        for node in ("node-1", "node-2")
    }

    def served(port: int | None, roots_pem: str) -> Served:
        """By all nodes together: ours tells each only of the policies that it needs."""
        first, second = (
            ask(f"localhost:{port}", roots_pem, token, node) for node, token in tokens.items()
        )
        return first | second

    def compare(running: Running) -> dict[str, tuple[Any, Any]]:
        theirs = served(istiod.tls, istiod.roots_pem)
        return differences(theirs, served(running.ports.tls, running.plane.roots_pem))

    async with control_plane(mesh, settings=settings) as running:
        found: dict[str, tuple[Any, Any]] = {}
        with trio.move_on_after(PATIENCE):
            while (found := await trio.to_thread.run_sync(compare, running)) != wanted:
                await trio.sleep(0.3)
    unexpected = {key: value for key, value in found.items() if wanted.get(key) != value}
    missing = {key: value for key, value in wanted.items() if found.get(key) != value}
    assert not unexpected, pprint.pformat(unexpected, width=150)
    assert not missing, pprint.pformat(missing, width=150)
