"""The Kubernetes API as a source of objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.kubernetes import KubernetesSource
from daemonset.kube.client import KubeClient
from daemonset.kube.config import from_kubeconfig
from daemonset.kube.reflector import Pace
from tests.support.kube.cluster import Cluster
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import node, pod, policy, run, running

PATIENCE = 60.0
QUICK = Pace(first_pause=0.05, longest_pause=1.0, absent=0.3, relist=0.2, page=3)


@asynccontextmanager
async def source_of(cluster: Cluster, pace: Pace = QUICK) -> AsyncIterator[KubernetesSource]:
    """A source that has all objects."""
    client = KubeClient(from_kubeconfig(str(cluster.kubeconfig), None))
    source = KubernetesSource(client, pace)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                await source.open(nursery)
            yield source
            nursery.cancel_scope.cancel()
    finally:
        await client.forget_idle()


async def until(source: KubernetesSource, holds: Callable[[ObjectSet], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not holds(source.objects):
            await source.next_change()


in_thread = trio.to_thread.run_sync


async def test_what_is_there_and_what_changes_is_seen(cluster: Cluster) -> None:
    def before() -> None:
        cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
        node(cluster, "node-a")
        for number in range(7):  # more than a page
            run(cluster, pod("shop", f"old-{number}"), f"10.0.0.{number}")

    await in_thread(before)
    async with source_of(cluster) as source:
        objects = source.objects
        with trio.move_on_after(0.3) as quiet:
            await source.next_change()
        assert quiet.cancelled_caught  # what was there at first is no change
        assert {name for _, name in objects.pods} == {f"old-{number}" for number in range(7)}
        assert objects.pods["shop", "old-3"].ips == ("10.0.0.3",)
        assert objects.namespaces["shop"].meta.labels["istio.io/dataplane-mode"] == "ambient"
        assert "node-a" in objects.nodes
        item = pod("shop", "new", labels={"app": "new"})
        await in_thread(run, cluster, item, "10.0.0.100")
        await until(source, lambda now: ("shop", "new") in now.pods)
        await until(source, lambda now: now.pods["shop", "new"].ips == ("10.0.0.100",))
        assert ("shop", "new") not in objects.pods  # what was handed out stays as it was
        await in_thread(cluster.set_status, item, running("10.0.0.100", "Succeeded"))
        await until(source, lambda now: ("shop", "new") not in now.pods)
        await in_thread(cluster.delete, pod("shop", "old-0"))
        await until(source, lambda now: ("shop", "old-0") not in now.pods)


async def test_nothing_is_kept_that_nobody_reads(cluster: Cluster) -> None:
    def before() -> None:
        cluster.namespace("lean")
        item = pod(
            "lean",
            "one",
            annotations={
                "example.com/long": "x-annotation",
                "ambient.istio.io/redirection": "enabled",
            },
        )
        item["spec"]["containers"][0]["env"] = [{"name": "TOKEN", "value": "x-environment"}]
        item["spec"]["volumes"] = [{"name": "x-volume", "emptyDir": {}}]
        run(cluster, item, "10.0.1.1")

    await in_thread(before)
    async with source_of(cluster) as source:
        found = source.objects.pods["lean", "one"]
        assert dict(found.meta.annotations) == {"ambient.istio.io/redirection": "enabled"}
        assert found.ports[0].name == "http"
        assert "x-" not in repr(found)
        assert "manager" not in repr(found)


async def test_what_changes_nothing_for_the_mesh_is_no_change(cluster: Cluster) -> None:
    item = pod("default", "busy")
    await in_thread(run, cluster, item, "10.0.2.1")
    async with source_of(cluster) as source:
        before = source.objects.pods["default", "busy"]
        conditions = [{"type": "Ready", "status": "True"}, {"type": "Noise", "status": "True"}]
        await in_thread(cluster.set_status, item, {"conditions": conditions})
        marker = pod("default", "marker")  # comes after it on the same watch
        await in_thread(cluster.apply, marker)
        await until(source, lambda now: ("default", "marker") in now.pods)
        assert source.objects.pods["default", "busy"] is before


async def test_definitions_may_be_missing_and_are_picked_up_when_they_appear(
    cluster: Cluster,
) -> None:
    async with source_of(cluster) as source:
        off = "\n".join(source.off)
        for plural in ("authorizationpolicies.security.istio.io", "serviceentries", "gateways"):
            assert plural in off
        item = policy("default", "nobody", {"action": "ALLOW"})
        await in_thread(install, cluster, read_base(MANIFESTS / "crds"))
        await in_thread(cluster.apply, item)
        await until(source, lambda now: ("default", "nobody") in now.authorization_policies)
        assert "authorizationpolicies" not in "\n".join(source.off)
        assert "gateways" in "\n".join(source.off)


async def test_a_policy_that_cannot_be_read_closes_what_it_selects(cluster: Cluster) -> None:
    await in_thread(install, cluster, read_base(MANIFESTS / "crds"))
    selector = {"matchLabels": {"app": "db"}}
    broken = policy("default", "broken", {"selector": selector, "rulez": []})
    await in_thread(cluster.apply, broken)
    name = ("default", "broken")
    async with source_of(cluster) as source:
        found = source.objects.authorization_policies[name]
        assert found.action == "DENY"
        assert found.selector is not None
        assert found.selector.labels == {"app": "db"}
        assert found.rules is not None
        [rule] = found.rules
        assert not [*rule.sources, *rule.operations, *rule.conditions]  # whatever it is
        problem = source.problems[0]
        assert problem.object == "AuthorizationPolicy default/broken"
        assert problem.field == "spec.rulez"
        assert "is refused until it can be read" in problem.message
        # Mended, it is as it says; broken again, the last good version stays in force.
        mended = policy("default", "broken", {"selector": selector, "action": "ALLOW"})
        await in_thread(cluster.apply, mended)
        await until(source, lambda now: now.authorization_policies[name].action == "ALLOW")
        assert not source.problems
        await in_thread(cluster.apply, broken)
        await until(source, lambda _: source.problems)
        assert source.objects.authorization_policies[name].action == "ALLOW"
        assert "last good version" in source.problems[0].message
        await in_thread(cluster.delete, broken)
        await until(source, lambda now: name not in now.authorization_policies)
        assert not source.problems


async def test_watches_resume_without_listing_again(cluster: Cluster) -> None:
    pace = Pace(first_pause=0.05, longest_pause=1.0, watch=1.0)
    async with source_of(cluster, pace) as source:
        reflector = source.reflectors["Namespace"]
        with trio.fail_after(PATIENCE):
            while reflector.watches < 3:
                await trio.sleep(0.1)
        await in_thread(partial(cluster.namespace, "later"))
        await until(source, lambda now: "later" in now.namespaces)
        assert reflector.lists == 1


async def test_nothing_is_missed_while_the_api_server_is_away(cluster: Cluster) -> None:
    def while_it_was_away() -> None:
        cluster.namespace("between")
        cluster.delete(pod("default", "leaves"))
        cluster.compact()
        cluster.stop_api()
        cluster.start_api()

    await in_thread(cluster.apply, pod("default", "leaves"))
    async with source_of(cluster) as source:
        reflector = source.reflectors["Pod"]
        before = source.objects.pods["default", "leaves"]
        await in_thread(cluster.stop_api)
        with trio.fail_after(PATIENCE):
            while not reflector.trouble:
                await trio.sleep(0.05)
        assert source.objects.pods["default", "leaves"] is before  # what is known stays in force
        await in_thread(cluster.start_api)
        await in_thread(while_it_was_away)
        await until(source, lambda now: "between" in now.namespaces)
        await until(source, lambda now: ("default", "leaves") not in now.pods)
        with trio.fail_after(PATIENCE):
            while any(item.trouble for item in source.reflectors.values()):
                await trio.sleep(0.05)
        assert all(item.lists <= 4 for item in source.reflectors.values())
