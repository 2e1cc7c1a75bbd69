"""Conditions in the status of users' objects, written by the leader to a real API server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import MANIFESTS, gateway_api, install, read_base
from tests.support.kube.objects import node, pod, policy, run
from tests.support.kube.plane import PATIENCE, Running, control_plane

in_thread = trio.to_thread.run_sync
APPLY = "application/apply-patch+yaml"
WEB = {"matchLabels": {"app": "web"}}


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    install(
        cluster,
        [*read_base(MANIFESTS / "crds"), gateway_api("Gateway", "gateways", namespaced=True)],
    )
    for name in ("istio-system", "ambient-system"):
        cluster.namespace(name)
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    node(cluster, "node-a")
    run(cluster, pod("shop", "web", labels={"app": "web"}), "10.0.0.1")
    return cluster


def conditions(cluster: Cluster, item: Json) -> dict[str, Json]:
    status: Json = cluster.call("GET", cluster.path(item)).get("status") or {}
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


async def until(
    cluster: Cluster, item: Json, holds: Callable[[dict[str, Json]], Any]
) -> dict[str, Json]:
    with trio.fail_after(PATIENCE):
        while True:
            found = await in_thread(conditions, cluster, item)
            if holds(found):
                return found
            await trio.sleep(0.05)


async def quiet(running: Running) -> None:
    """Until nothing is written any more: nothing has been for so long as it waits, ten times."""
    with trio.fail_after(PATIENCE):
        while True:
            before = running.backend.conditions.written
            await trio.sleep(1.0)
            if running.backend.conditions.written == before:
                return


async def test_policies_say_what_becomes_of_them(mesh: Cluster) -> None:
    good = policy("shop", "good", {"selector": WEB, "rules": [{}]})
    http = {"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}
    late = policy("shop", "late", http)
    broken = policy("shop", "broken", {"selector": {"matchLabels": {"app": "db"}}, "rulez": []})
    for item in (good, broken):
        await in_thread(mesh.apply, item)
    async with control_plane(mesh) as running:
        found = await until(mesh, good, len)
        assert found["ZtunnelAccepted"]["status"] == "True"
        assert found["ZtunnelAccepted"]["observedGeneration"] == 1
        since = found["ZtunnelAccepted"]["lastTransitionTime"]
        found = await until(mesh, broken, len)
        assert found["ZtunnelAccepted"]["reason"] == "Invalid"
        assert "spec.rulez" in found["ZtunnelAccepted"]["message"]
        await in_thread(mesh.apply, late)
        found = await until(mesh, late, len)
        assert found["ZtunnelAccepted"]["reason"] == "UnsupportedValue"
        # Mended, all of it is well; a change that changes nothing for it is told of as well.
        await in_thread(mesh.apply, policy("shop", "late", {"rules": [{}]}))
        found = await until(mesh, late, lambda now: now["ZtunnelAccepted"]["status"] == "True")
        two = {"selector": WEB, "rules": [{}, {}]}
        await in_thread(mesh.apply, policy("shop", "good", two))
        found = await until(
            mesh, good, lambda now: now["ZtunnelAccepted"]["observedGeneration"] == 2
        )
        assert found["ZtunnelAccepted"]["lastTransitionTime"] == since
        await in_thread(mesh.apply, policy("shop", "good", {"rules": [], "selector": WEB}))
        await in_thread(
            mesh.apply, policy("shop", "late", {"selector": {"matchLabels": {"a": "b"}}})
        )
        await until(mesh, late, lambda now: now["ZtunnelAccepted"]["reason"] == "SelectsNothing")
        assert await in_thread(listed, mesh) == {
            "good": ["good", "", "Accepted", ""],
            "late": ["late", "", "SelectsNothing", ""],
            "broken": ["broken", "", "Invalid", ""],
        }
        await quiet(running)
        version = await in_thread(resource_version, mesh, good)
    # Whoever leads next finds it all said, and writes nothing.
    async with control_plane(mesh, "replica-2") as running:
        with trio.fail_after(PATIENCE):
            while not running.backend.election.is_leader:
                await trio.sleep(0.05)
        await quiet(running)
        assert running.backend.conditions.written == 0
        assert await in_thread(resource_version, mesh, good) == version
    for item in (good, late, broken):
        await in_thread(mesh.delete, item)


def listed(cluster: Cluster) -> dict[str, list[str]]:
    """What `kubectl get` shows of all policies, but for their age."""
    with contextlib.closing(cluster.connect()) as connection:
        path = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies"
        headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        connection.request("GET", path, None, headers)
        table: Json = json.loads(connection.getresponse().read())
    columns = [column["name"] for column in table["columnDefinitions"]]
    assert columns == ["Name", "Action", "Ztunnel", "Waypoint", "Age"]
    rows = [[str(cell or "") for cell in row["cells"][:-1]] for row in table["rows"]]
    return {row[0]: row for row in rows}


def resource_version(cluster: Cluster, item: Json) -> str:
    version: str = cluster.call("GET", cluster.path(item))["metadata"]["resourceVersion"]
    return version


async def test_other_kinds_say_it_too(mesh: Cluster) -> None:
    entry: Json = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {
            "name": "e",
            "namespace": "shop",
            "labels": {"istio.io/use-waypoint": "w"},
        },
        "spec": {"hosts": ["a.example"], "ports": [{"number": 80, "name": "http"}]},
    }
    gateway: Json = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "w", "namespace": "shop"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    for item in (entry, gateway):
        await in_thread(mesh.apply, item)
    async with control_plane(mesh) as running:
        found = await until(mesh, entry, len)
        assert found["Accepted"]["status"] == "True"
        assert found["istio.io/WaypointBound"]["status"] == "False"
        found = await until(mesh, gateway, len)
        assert found["ambientd.io/WaypointReady"]["status"] == "False"
        # Its own controller gives it an address, and keeps its own conditions.
        theirs = {
            "addresses": [{"value": "10.0.0.9"}],
            "conditions": [*found.values(), {"type": "Programmed", "status": "True"}],
        }
        await in_thread(mesh.set_status, gateway, theirs)
        found = await until(
            mesh, entry, lambda now: now["istio.io/WaypointBound"]["status"] == "True"
        )
        found = await until(mesh, gateway, lambda now: "Programmed" in now)
        await quiet(running)
    for item in (entry, gateway):
        await in_thread(mesh.delete, item)


async def test_what_another_owner_writes_is_left_to_it(
    mesh: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another revision, or with the same conditions held by another field manager."""
    other = policy("shop", "other", {"rules": [{}]})
    other["metadata"]["labels"] = {"istio.io/rev": "canary"}
    held = policy("shop", "held", {"rules": [{}]})
    plain = policy("shop", "plain", {"rules": [{}]})
    theirs = {
        "type": "ZtunnelAccepted",
        "status": "True",
        "reason": "Accepted",
        "message": "attached to ztunnel",
    }

    def before() -> None:
        for item in (other, held):
            mesh.apply(item)
        body = {
            "apiVersion": held["apiVersion"],
            "kind": held["kind"],
            "metadata": held["metadata"],
            "status": {"conditions": [theirs]},
        }
        path = f"{mesh.path(held)}/status?fieldManager=pilot-discovery"
        mesh.call("PATCH", path, body, content_type=APPLY)

    await in_thread(before)
    async with control_plane(mesh) as running:
        await in_thread(mesh.apply, plain)
        await until(mesh, plain, len)
        with trio.fail_after(PATIENCE):
            while "shop/held: its status is left to its owner" not in caplog.text:
                await trio.sleep(0.05)
        assert await in_thread(conditions, mesh, other) == {}
        assert await in_thread(conditions, mesh, held) == {"ZtunnelAccepted": theirs}
        # Somebody who fights for our conditions gets them: there is no second round.
        written = running.backend.conditions.written
        forced = {"conditions": [{**theirs, "message": "by force"}]}
        await in_thread(mesh.set_status, plain, forced)
        await quiet(running)
        assert running.backend.conditions.written == written
        found = await in_thread(conditions, mesh, plain)
        assert found["ZtunnelAccepted"]["message"] == "by force"
        # Given to the other control plane, it is as if we had never been there.
        caplog.clear()
        meta = {**plain["metadata"], "labels": {"istio.io/rev": "canary"}}
        await in_thread(partial(mesh.apply, {**plain, "metadata": meta}))
        await quiet(running)
        assert running.backend.conditions.written == written


async def test_only_the_leader_writes(mesh: Cluster) -> None:
    item = policy("shop", "led", {"rules": [{}]})
    async with control_plane(mesh, "one") as one, control_plane(mesh, "two") as two:
        with trio.fail_after(PATIENCE):
            while not (one.backend.election.is_leader or two.backend.election.is_leader):
                await trio.sleep(0.05)
        await in_thread(mesh.apply, item)
        await until(mesh, item, len)
        await quiet(one)
        await quiet(two)
        counts = {
            each.backend.election.is_leader: each.backend.conditions.written for each in (one, two)
        }
        assert counts[False] == 0
        assert counts[True] > 0
