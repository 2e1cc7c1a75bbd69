"""A CA that refuses, and one that is slow."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_ca import FakeCa, serving
from tests.support.faults import FaultLab, fault_lab
from tests.support.pod_sockets import connect, echo, exchange, is_served, steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLIENT = "spiffe://cluster.local/ns/default/sa/client"
LATE = "spiffe://cluster.local/ns/later/sa/late"


@pytest.fixture
def ca() -> FakeCa:
    return FakeCa()


@pytest.fixture
def ca_lab(tmp_path: Path, ca: FakeCa) -> Iterator[FaultLab]:
    """Who waits for a certificate may do so for a minute."""
    pods = {"later/late": 1}
    environment = {**ca.environment, "ZTUNNEL_HANDSHAKE_TIMEOUT": "60s"}
    with (
        fault_lab(tmp_path, environment, enrol=False, pods=pods) as lab,
        serving(lab.mesh, ca),
    ):
        yield lab


def test_who_is_refused_is_told_why_at_once_and_served_once_the_ca_signs(
    ca_lab: FaultLab, ca: FakeCa
) -> None:
    mesh = ca_lab.mesh
    ca.refuse = "the token is not to our taste"
    mesh.enrol()
    with echo(mesh, "server", 7000):
        started = time.monotonic()
        with connect(mesh, "client", ca_lab.server) as refused, pytest.raises(ConnectionError):
            exchange(refused, b"without a certificate")
        assert time.monotonic() - started < 20, "nobody waits for what was refused"
        ca_lab.near.log.says(f"access.*no certificate for {CLIENT}.*not to our taste")
        assert ca_lab.near.ready(), "a CA that refuses does not make the node unready"
        ca.refuse = ""
        for ztunnel in (ca_lab.near, ca_lab.far):
            ztunnel.log.says("ztunnel.tls.*certificate of spiffe://.*valid until")
        # Said by the control processes; the workers hear of it a moment later.
        mesh.wait(lambda: is_served(mesh, "client", ca_lab.server), "it is served, with one")


def test_who_waits_for_a_slow_ca_is_served_and_holds_up_nobody(
    ca_lab: FaultLab, ca: FakeCa
) -> None:
    mesh = ca_lab.mesh
    mesh.enrol()
    with echo(mesh, "server", 7000), steady(mesh, "client", ca_lab.server, 10) as flows:
        ca.open.clear()
        mesh.enrol("later")
        waiting = connect(mesh, "later/late", ca_lab.server)
        waiting.sendall(b"patience")
        mesh.wait(lambda: LATE in ca.asked, "the CA is asked")
        before = flows.mark()
        mesh.wait(lambda: flows.all_went_on(before, by=20), "all others go on")
        with connect(mesh, "client", ca_lab.server) as another:
            assert exchange(another, b"another") == b"another"
        ca.open.set()
        assert waiting.recv(100) == b"patience"
        assert ca.asked.count(LATE) == 1, "one request, whoever waits for it"


def test_who_waits_too_long_is_told_so(tmp_path: Path, ca: FakeCa) -> None:
    environment = {**ca.environment, "ZTUNNEL_HANDSHAKE_TIMEOUT": "1s"}
    with fault_lab(tmp_path, environment, enrol=False) as lab, serving(lab.mesh, ca):
        ca.open.clear()
        lab.mesh.enrol()
        with connect(lab.mesh, "client", lab.server) as sock, pytest.raises(ConnectionError):
            exchange(sock, b"nobody answers")
        lab.near.log.says(f"access.*no certificate for {CLIENT} within 1s; is the CA reachable")
