"""The certificate manager under a clock that jumps: days pass in milliseconds."""

import logging
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.pki import DAY, Authority, make_root, pem
from ztunnel.mesh.identity import Identity
from ztunnel.tls.certificates import (
    CertificateManager,
    CertificateUnavailable,
    WorkloadCertificate,
)
from ztunnel.tls.crl import RevocationList

ALICE = Identity("cluster.local", "shop", "alice")
BOB = Identity("cluster.local", "shop", "bob")
START = 2_000_000_000.0


def wall() -> float:
    return START + trio.current_time()


class Ca:
    """A CA whose behaviour a test can change while it runs."""

    def __init__(self) -> None:
        self.authority = make_root().intermediate()
        self.asked: list[tuple[float, Identity]] = []
        self.fail: Exception | None = None
        self.delay = 0.0
        self.age = 120.0
        self.extra_roots = ""
        self.active = 0
        self.most_active = 0

    async def sign(self, identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        self.asked.append((trio.current_time(), identity))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await trio.sleep(self.delay)
        finally:
            self.active -= 1
        if self.fail is not None:
            raise self.fail
        answer = self.authority.answer(
            csr_pem, [identity.uri], start=int(wall()) - self.age, lifetime=ttl + 120
        )
        answer[-1] += self.extra_roots
        return answer

    def times(self, identity: Identity = ALICE) -> list[float]:
        return [moment for moment, who in self.asked if who == identity]


# pytest-trio takes a clock from a test's own arguments only, not from those of its fixtures.
Start = Callable[..., Awaitable[CertificateManager]]


@pytest.fixture
def ca() -> Ca:
    return Ca()


@pytest.fixture
def start(ca: Ca, nursery: trio.Nursery) -> Start:
    async def run(in_flight: int = 8) -> CertificateManager:
        manager = CertificateManager(ca, in_flight=in_flight, wall_clock=wall, rng=random.Random(1))
        await nursery.start(manager.run)
        return manager

    return run


async def test_first_certificate_is_waited_for(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.delay = 3.0
    manager = await start()
    assert manager.current(ALICE) is None
    got = await manager.fetch(ALICE)
    assert trio.current_time() == 3.0
    assert got.identity == ALICE
    assert manager.current(ALICE) is got
    assert await manager.fetch(ALICE) is got
    assert len(ca.asked) == 1
    assert manager.statistics.signed == 1
    assert manager.statistics.failed == 0
    assert manager.statistics.seconds == 3.0


async def test_single_flight(ca: Ca, autojump_clock: MockClock, start: Start) -> None:
    ca.delay = 1.0
    manager = await start()
    got: list[WorkloadCertificate] = []

    async def fetch() -> None:
        got.append(await manager.fetch(ALICE))

    async with trio.open_nursery() as nursery:
        manager.prefetch(ALICE)
        for _ in range(50):
            nursery.start_soon(fetch)
    assert len(ca.asked) == 1
    assert len(got) == 50
    assert len(set(got)) == 1


async def test_prefetch_is_concurrent_and_bounded(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.delay = 1.0
    manager = await start()
    identities = [Identity("cluster.local", "shop", f"account-{i}") for i in range(20)]
    for identity in identities:
        manager.prefetch(identity)
    await trio.sleep(0.5)
    assert manager.statistics.in_flight == 8
    await trio.sleep(2.6)
    assert ca.most_active == 8
    assert all(manager.current(identity) is not None for identity in identities)
    assert len(ca.asked) == 20


async def test_waiting_connections_go_before_warmup(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.delay = 1.0
    manager = await start(in_flight=1)
    manager.prefetch(ALICE)
    await trio.sleep(0.5)
    queued = [Identity("cluster.local", "shop", f"account-{i}") for i in range(4)]
    for identity in queued:
        manager.prefetch(identity)
    await trio.sleep(0.1)
    # One is under way; what a connection waits for is next, also if it was queued before.
    await manager.fetch(queued[-1])
    assert trio.current_time() == 2.0
    # Then a warmup has the slot, until 3.0, and the newcomer overtakes the other three.
    await manager.fetch(BOB)
    assert trio.current_time() == 4.0


async def test_renewal_at_half_life_is_announced(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    told: list[WorkloadCertificate | None] = []
    manager.listen(lambda identity, certificate: told.append(certificate))
    first = await manager.fetch(ALICE)
    await trio.sleep(0.44 * DAY)
    assert manager.current(ALICE) is first
    await trio.sleep(0.12 * DAY)
    second = manager.current(ALICE)
    assert second is not None
    assert second is not first
    assert told == [first, second]
    await trio.sleep(30 * DAY)
    assert 54 <= len(ca.asked) <= 68
    gaps = [b - a for a, b in zip(ca.times(), ca.times()[1:], strict=False)]
    assert min(gaps) >= 0.44 * DAY
    assert max(gaps) <= 0.56 * DAY
    assert len(set(gaps)) > 10, "jitter"


async def test_back_off_doubles_to_a_limit_and_ends_with_success(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.fail = RuntimeError("the CA is closed today")
    manager = await start()
    with pytest.raises(CertificateUnavailable, match="sa/alice: the CA is closed today"):
        await manager.fetch(ALICE)
    await trio.sleep(2000)
    gaps = [b - a for a, b in zip(ca.times(), ca.times()[1:], strict=False)]
    for i, gap in enumerate(gaps):
        expected = min(2.0**i, 150.0)
        assert 0.8 * expected <= gap <= 1.2 * expected
    assert len(gaps) >= 15
    (state,) = manager.states()
    assert state.phase == "Unavailable"
    assert state.error == "the CA is closed today"
    assert state.failures == len(gaps) + 1
    assert manager.statistics.failed == len(gaps) + 1
    ca.fail = None
    await trio.sleep(181)
    assert (await manager.fetch(ALICE)).identity == ALICE
    (state,) = manager.states()
    assert (state.phase, state.failures, state.error) == ("Available", 0, None)
    # The next failure starts anew at one second.
    ca.fail = RuntimeError("again")
    await trio.sleep(0.56 * DAY)
    renewals = [moment for moment in ca.times() if moment > 20_000]
    assert 0.8 <= renewals[1] - renewals[0] <= 1.2


async def test_callers_get_the_last_error_at_once(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.fail = RuntimeError("no")
    ca.delay = 5.0
    manager = await start()
    with pytest.raises(CertificateUnavailable):
        await manager.fetch(ALICE)
    for _ in range(10):
        await trio.sleep(7)
        before = trio.current_time()
        with pytest.raises(CertificateUnavailable, match=r"sa/alice: no$"):
            await manager.fetch(ALICE)
        assert trio.current_time() == before


async def test_valid_certificate_is_kept_until_it_expires(
    ca: Ca, autojump_clock: MockClock, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start()
    told: list[WorkloadCertificate | None] = []
    first = await manager.fetch(ALICE)
    manager.listen(lambda identity, certificate: told.append(certificate))
    ca.fail = RuntimeError("the CA is gone")
    await trio.sleep(0.6 * DAY)
    assert "CANNOT RENEW the certificate of spiffe://cluster.local/ns/shop/sa/alice" in caplog.text
    assert "the CA is gone" in caplog.text
    assert manager.current(ALICE) is first
    assert await manager.fetch(ALICE) is first
    (state,) = manager.states()
    assert state.phase == "Available"
    assert state.error == "the CA is gone"
    await trio.sleep(first.not_after - wall() - 1)
    assert manager.current(ALICE) is first
    assert told == []
    await trio.sleep(2)
    assert manager.current(ALICE) is None
    assert told == [None]
    assert "the certificate of spiffe://cluster.local/ns/shop/sa/alice EXPIRED" in caplog.text
    with pytest.raises(CertificateUnavailable, match="the CA is gone"):
        await manager.fetch(ALICE)
    (state,) = manager.states()
    assert state.phase == "Unavailable"
    assert state.certificate is first
    ca.fail = None
    await trio.sleep(200)
    assert told[1] is manager.current(ALICE)
    assert told[1] is not None


async def test_expiry_is_itself_an_attempt(ca: Ca, autojump_clock: MockClock, start: Start) -> None:
    manager = await start()
    first = await manager.fetch(ALICE)
    ca.fail = RuntimeError("gone")
    await trio.sleep(first.not_after - wall() - 0.5)
    before = len(ca.asked)
    await trio.sleep(0.5)
    await wait_all_tasks_blocked()
    assert len(ca.asked) == before + 1


async def test_one_identity_in_trouble_does_not_disturb_others(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    good = ca.sign

    async def sign(identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        if identity == BOB:
            return await good(ALICE, csr_pem, ttl)
        return await good(identity, csr_pem, ttl)

    ca.sign = sign  # type: ignore[method-assign]
    with pytest.raises(CertificateUnavailable, match=r"bob and certified .*sa/alice"):
        await manager.fetch(BOB)
    assert (await manager.fetch(ALICE)).identity == ALICE
    assert [state.phase for state in manager.states()] == ["Available", "Unavailable"]


async def test_certificate_that_has_expired_already_is_refused(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    ca.age = 2 * DAY
    with pytest.raises(CertificateUnavailable, match="the CA's certificate expired at 2033-05-17T"):
        await manager.fetch(ALICE)


async def test_clock_set_forward_is_noticed_within_the_hour(
    ca: Ca, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    offset = 0.0
    manager = CertificateManager(ca, wall_clock=lambda: wall() + offset)
    await nursery.start(manager.run)
    first = await manager.fetch(ALICE)
    offset = 0.7 * DAY
    assert manager.current(ALICE) is first
    await trio.sleep(3601)
    assert manager.current(ALICE) is not first
    assert len(ca.asked) == 2


async def test_forgotten_after_a_minute_unless_wanted_again(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    first = await manager.fetch(ALICE)
    manager.forget(ALICE)
    manager.forget(ALICE)
    manager.forget(BOB)
    await trio.sleep(59)
    assert await manager.fetch(ALICE) is first
    manager.prefetch(ALICE)
    await trio.sleep(120)
    assert manager.current(ALICE) is first
    manager.forget(ALICE)
    await trio.sleep(61)
    assert manager.current(ALICE) is None
    assert manager.states() == []
    await trio.sleep(2 * DAY)
    assert len(ca.asked) == 1, "nothing renews it"
    assert await manager.fetch(ALICE) is not first


async def test_who_waits_for_a_forgotten_one_is_told(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    ca.delay = 1000.0
    manager = await start()
    manager.prefetch(ALICE)
    manager.forget(ALICE)
    with pytest.raises(CertificateUnavailable, match="no workload of this node uses it"):
        await manager.fetch(ALICE)
    assert trio.current_time() == 60.0
    await wait_all_tasks_blocked()
    assert ca.active == 0


async def test_new_roots_count_for_everybody_at_once(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    alice = await manager.fetch(ALICE)
    told: list[tuple[Identity, WorkloadCertificate | None]] = []
    manager.listen(lambda identity, certificate: told.append((identity, certificate)))
    ca.extra_roots = pem(make_root("next").certificate)
    bob = await manager.fetch(BOB)
    now = manager.current(ALICE)
    assert now is not None
    assert now.serial == alice.serial
    assert now.roots_pem == bob.roots_pem != alice.roots_pem
    assert told == [(BOB, bob), (ALICE, now)]
    # Its own chain still leads to one of them: no need to ask anew.
    await trio.sleep(0.4 * DAY)
    assert len(ca.times(ALICE)) == 1


async def test_certificates_of_a_withdrawn_root_are_replaced_soon(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    alice = await manager.fetch(ALICE)
    await trio.sleep(100)
    ca.authority = make_root("new")
    await manager.fetch(BOB)
    await trio.sleep(11)
    now = manager.current(ALICE)
    assert now is not None
    assert now.serial != alice.serial
    assert now.anchored


async def test_replicas_that_disagree_about_roots_do_not_drive_us_in_circles(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    authorities = [ca.authority, make_root("other")]
    await manager.fetch(ALICE)
    await manager.fetch(BOB)
    good = ca.sign

    async def sign(identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        ca.authority = authorities[len(ca.asked) % 2]
        return await good(identity, csr_pem, ttl)

    ca.sign = sign  # type: ignore[method-assign]
    for account in ("carol", "dave"):  # one of them by the other root
        await manager.fetch(Identity("cluster.local", "shop", account))
    await trio.sleep(3600)
    assert 8 < len(ca.asked) < 4 * 65, "again and again, at most one a minute for each"


async def test_replacing_them_all_is_spread(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    identities = [Identity("cluster.local", "shop", f"account-{i}") for i in range(10)]
    for identity in identities:
        await manager.fetch(identity)
    await trio.sleep(3600)
    asked = trio.current_time()
    ca.authority = make_root("new")
    await manager.fetch(ALICE)
    await trio.sleep(11)
    moments = [moment for moment, _ in ca.asked[11:]]
    assert len(moments) == 10
    assert len(set(moments)) == 10
    assert all(asked <= moment <= asked + 10 for moment in moments)


async def test_our_own_revoked_certificate_is_replaced(
    ca: Ca, autojump_clock: MockClock, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start()
    alice = await manager.fetch(ALICE)
    bob = await manager.fetch(BOB)
    told: list[tuple[Identity, WorkloadCertificate | None]] = []
    manager.listen(lambda identity, certificate: told.append((identity, certificate)))
    ca.delay = 1.0
    manager.set_revocations(RevocationList.parse(ca.authority.crl([alice.serial])))
    assert manager.current(ALICE) is None
    assert manager.current(BOB) is bob
    assert told == [(ALICE, None)]
    assert "our certificate of spiffe://cluster.local/ns/shop/sa/alice is not used" in caplog.text
    with pytest.raises(CertificateUnavailable, match="it is revoked: serial number"):
        await manager.fetch(ALICE)
    assert manager.states()[0].phase == "Unavailable"
    await trio.sleep(2)
    replaced = manager.current(ALICE)
    assert replaced is not None
    assert told[1:] == [(ALICE, replaced)]


async def test_revocation_that_is_taken_back(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    alice = await manager.fetch(ALICE)
    ca.fail = RuntimeError("busy")
    manager.set_revocations(RevocationList.parse(ca.authority.crl([alice.serial])))
    await trio.sleep(10)
    assert manager.current(ALICE) is None
    told: list[WorkloadCertificate | None] = []
    manager.listen(lambda identity, certificate: told.append(certificate))
    manager.set_revocations(RevocationList())
    assert told == [alice]
    assert manager.current(ALICE) is alice


async def test_ca_that_hands_out_revoked_ones(
    ca: Ca, autojump_clock: MockClock, start: Start
) -> None:
    manager = await start()
    upper: Authority = ca.authority.parents[0]
    manager.set_revocations(
        RevocationList.parse(upper.crl([ca.authority.certificate.serial_number]))
    )
    with pytest.raises(CertificateUnavailable, match="of no use: it is revoked"):
        await manager.fetch(ALICE)


async def test_certificate_of_the_future_is_told(
    ca: Ca, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CertificateManager(ca, wall_clock=lambda: wall() - 600)
    await nursery.start(manager.run)
    await manager.fetch(ALICE)
    assert "clocks differ" in caplog.text


async def test_not_running() -> None:
    manager = CertificateManager(Ca())
    with pytest.raises(RuntimeError, match="not running"):
        await manager.fetch(ALICE)


async def test_log_names_the_validity(
    ca: Ca, autojump_clock: MockClock, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manager = await start()
    got = await manager.fetch(ALICE)
    assert f"serial number {got.serial}, valid until 2033-05-19T03:33:20Z" in caplog.text
