"""Changing from Istio's control plane to ours and back keeps the root of trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.istio.definitions import install_definitions
from tests.support.istio.istiod import Istiod
from tests.support.kube.cluster import Cluster
from tests.support.kube.plane import control_plane

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Cluster]:
    """An API server of the test's own, without any root of trust."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with Cluster(folder) as running:
        install_definitions(running)
        running.namespace("istio-system")
        running.namespace("ambient-system")
        yield running


async def test_ours_takes_over_the_root_of_istiod(fresh: Cluster, tmp_path: Path) -> None:
    def before() -> str:
        with Istiod(fresh, tmp_path / "istiod") as istiod:
            return istiod.roots_pem

    roots = await trio.to_thread.run_sync(before)
    async with control_plane(fresh) as running:
        assert running.plane.roots_pem.split() == roots.split()


async def test_istiod_takes_over_the_root_of_ours(fresh: Cluster, tmp_path: Path) -> None:
    def after() -> str:
        with Istiod(fresh, tmp_path / "istiod") as istiod:
            return istiod.roots_pem

    async with control_plane(fresh) as running:
        roots = running.plane.roots_pem
    assert (await trio.to_thread.run_sync(after)).split() == roots.split()
