"""Parts of the mesh are killed under traffic, as by the kernel when memory ends: no time to say so.

Whatever is away: what a captured pod sends is encrypted or refused, never seen on the wire.
"""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.support.cluster.mesh import Mesh, Shop
from tests.support.cluster.pods import RunningPod, application
from tests.support.kube.objects import policy, strict
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
SECONDS = 60.0
"""For new connections after a proxy was killed: three or four where the machine has time."""


@pytest.fixture(scope="module")
def shop(mesh: Mesh) -> Shop:
    made = mesh.shop("killed", mode="ambient")
    made.wait_redirection("enabled")
    mesh.wait_encrypted(made)
    mesh.cluster.api.apply(strict("killed"))
    return made


def rules(pod: RunningPod) -> tuple[str, list[Any]]:
    """The rules in a pod's namespace, without what counts, and its routing rules."""
    with pod.enter() as network, network.enter(), IPRoute() as ip:
        command = ["nft", "--stateless", "list", "ruleset"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        routing = [each.get("FRA_FWMARK") for each in ip.get_rules()]
    assert "ambientd" in done.stdout
    return re.sub(r"elements = \{[^}]*\}", "", done.stdout), routing


def test_a_killed_agent_is_missed_by_nobody(mesh: Mesh, shop: Shop) -> None:
    before = rules(shop.web)
    agent = mesh.part("ambient-agent", "node-1")
    restarts = agent.restarts
    with mesh.unseen(shop) as (traffic, kept):
        agent.kill()
        # Its start waits for the next agent.
        mesh.cluster.api.apply(application("killed", "late", "node-1", "web"))
        agent.wait_restarted(restarts)
        late = shop.pod("late").wait_ready()
        traffic.more()
        kept.more()
    failures = traffic.outcome.failures + kept.outcome.failures
    assert failures == [], failures[:4]
    late.wait_redirection("enabled")
    assert rules(late) == rules(shop.web) == before
    assert shop.web.redirection == "enabled"
    wait_for("it says that it works", lambda: "node node-1 is at work" in agent.logs())


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_a_killed_ztunnel_is_back_within_seconds(mesh: Mesh, shop: Shop, node: str) -> None:
    """On one node its first process alone, on the other its whole pod with the sandbox."""
    pod = shop.web if node == "node-1" else shop.orders
    before = rules(pod)
    ztunnel = mesh.part("ztunnel", node)
    agent = mesh.part("ambient-agent", node)
    restarts = ztunnel.restarts
    with mesh.unseen(shop) as (traffic, kept):
        ztunnel.kill(sandbox=node == "node-2")
        killed = time.monotonic()
        wait_for("requests are refused", lambda: traffic.outcome.failures)
        wait_for("live connections have ended", lambda: kept.outcome.failures)
        traffic.more(3)
        assert time.monotonic() - killed < SECONDS
        ztunnel.wait_restarted(restarts)
        traffic.more()
        failures = len(traffic.outcome.failures)
        traffic.more()
    assert traffic.outcome.failures[failures:] == []
    assert rules(pod) == before
    assert pod.redirection == "enabled"
    assert (pod.is_ready(), pod.restarts) == (True, 0)
    assert "no ztunnel is connected any more" in agent.logs()
    last = ztunnel.now["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["exitCode"] == 137


def test_a_killed_control_plane_is_missed_by_nobody(mesh: Mesh, shop: Shop) -> None:
    control = mesh.part("ambient-control-plane")
    restarts = control.restarts
    with mesh.unseen(shop) as (traffic, kept):
        control.kill()
        traffic.more()
        control.wait_restarted(restarts)
        source = {"source": {"principals": ["cluster.local/ns/killed/sa/web"]}}
        spec = {"selector": {"matchLabels": {"app": "orders"}}, "rules": [{"from": [source]}]}
        assert shop.is_answered("visitor")
        mesh.cluster.api.apply(policy("killed", "only-for-web", spec))
        # Proxies have found the new one, and it knows what the one before it knew.
        wait_for("the visitor is refused", lambda: not shop.is_answered("visitor"))
        traffic.more()
        kept.more()
    failures = traffic.outcome.failures + kept.outcome.failures
    assert failures == [], failures[:4]
    for node in mesh.cluster.nodes:
        assert "no stream to the control plane" in mesh.part("ztunnel", node).logs()


def test_a_sandbox_that_is_killed_comes_back_captured(mesh: Mesh, shop: Shop) -> None:
    """The same pod under the same UID, with another namespace and other addresses."""
    before = shop.orders.now
    with mesh.unseen(shop) as (traffic, _):
        shop.orders.kill(sandbox=True)

        def runs_anew() -> bool:
            now = shop.orders.now["status"]
            return bool(
                now.get("podIP") not in (None, before["status"]["podIP"]) and shop.orders.is_ready()
            )

        wait_for("orders runs again", runs_anew)
        traffic.more()
        failures = len(traffic.outcome.failures)
        traffic.more()
    assert traffic.outcome.failures[failures:] == []
    assert shop.orders.now["metadata"]["uid"] == before["metadata"]["uid"]
    assert shop.orders.redirection == "enabled"
    assert rules(shop.orders)
