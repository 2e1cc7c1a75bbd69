"""Two control planes for one mesh: ours gives way to the one that is there, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from daemonset.control_plane.other_planes import (
    OtherControlPlaneError,
    other_planes,
    watch_for_others,
)
from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.objects import pod, run
from tests.support.kube.plane import PATIENCE, client_of, control_plane

in_thread = trio.to_thread.run_sync


def istiod(namespace: str = "istio-system", **labels: str) -> Json:
    named = {"istio.io/rev": "default", **{k.replace("_", "/"): v for k, v in labels.items()}}
    return pod(namespace, "istiod-7d9", account="istiod", labels={"app": "istiod", **named})


@pytest.fixture
def mesh(cluster: Cluster) -> Iterator[Cluster]:
    for name in ("istio-system", "ambient-system", "shop"):
        cluster.namespace(name)
    yield cluster
    for name in ("istio-system", "shop"):
        path = f"/api/v1/namespaces/{name}/pods"
        for item in cluster.call("GET", path)["items"]:
            cluster.call("DELETE", f"{path}/{item['metadata']['name']}?gracePeriodSeconds=0")


async def test_it_does_not_start_beside_istiod(mesh: Cluster) -> None:
    secrets = "/api/v1/namespaces/istio-system/secrets"
    before = mesh.call("GET", secrets)["items"]
    await in_thread(run, mesh, istiod(), "10.244.0.9")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with control_plane(mesh):
            pytest.fail("it serves")
    (reason,) = _leaves(caught.value)
    assert isinstance(reason, OtherControlPlaneError)
    assert "istiod of revision default" in str(reason)
    assert "pod istiod-7d9" in str(reason)
    assert mesh.call("GET", secrets)["items"] == before, "it made itself a root"


async def test_it_starts_beside_one_of_another_revision(mesh: Cluster) -> None:
    await in_thread(run, mesh, istiod(**{"istio.io_rev": "canary"}), "10.244.0.9")
    async with control_plane(mesh):
        pass


async def test_nobody_stops_it_from_another_namespace(mesh: Cluster) -> None:
    await in_thread(run, mesh, istiod("shop"), "10.244.0.9")
    async with control_plane(mesh):
        pass


async def test_it_ends_when_istiod_comes(mesh: Cluster) -> None:
    async with client_of(mesh) as client:
        with trio.fail_after(PATIENCE), pytest.raises(BaseExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_for_others, client, MeshSettings(), 0.05)
                await trio.sleep(0.3)  # it looks, and finds nobody
                await in_thread(run, mesh, istiod(), "10.244.0.9")
        (reason,) = _leaves(caught.value)
        assert isinstance(reason, OtherControlPlaneError)


def test_those_that_have_ended_or_are_leaving_do_not_count() -> None:
    one = istiod()
    assert other_planes([one], "default") == ["istiod-7d9"]
    assert other_planes([one], "canary") == []
    assert other_planes([one | {"status": {"phase": "Failed"}}], "default") == []
    leaving = one | {"metadata": {**one["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert other_planes([leaving], "default") == []


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
