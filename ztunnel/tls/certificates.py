"""Certificates of all workloads of a node: asked for once, renewed in time, never thrown away.

One task per identity asks the CA, waits for half of the certificate's life and asks again. What
goes wrong there is remembered, logged and tried again later; the certificate at hand stays in use
until it expires. Wall-clock time decides about validity, trio's clock only about waiting, so
that a clock that is set anew is noticed within the hour.
"""

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import trio

from ztunnel.mesh.identity import Identity
from ztunnel.tls.certificate_state import CertificateState, CertificateStatistics
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.slots import Priority, Slots, Turn
from ztunnel.tls.workload_certificate import (
    CertificateError,
    WorkloadCertificate,
    from_ca_answer,
    make_key_and_csr,
)

__all__ = [
    "CertificateAuthority",
    "CertificateManager",
    "CertificateState",
    "CertificateStatistics",
    "CertificateUnavailable",
    "Priority",
    "WorkloadCertificate",
]

log = logging.getLogger("ztunnel.tls")

FIRST_RETRY = 1.0
LAST_RETRY = 150.0
_LONGEST_SLEEP = 3600.0
# Renewals that a change of roots makes necessary: not all at once, and not in a circle when two
# replicas of the CA disagree about the roots.
_SPREAD = 10.0
_AT_MOST_EVERY = 60.0


class CertificateAuthority(Protocol):
    """Somebody who signs certificates."""

    async def sign(self, identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        """Ask for a certificate.

        Args:
            identity: whom it is for.
            csr_pem: the request.
            ttl: wanted lifetime in seconds.

        Returns:
            PEM: leaf, intermediates, and last the bundle of roots.

        Raises:
            Exception: whatever went wrong; its text goes to the log and to callers.
        """
        ...


class CertificateUnavailable(Exception):
    """There is no certificate to use for an identity; the text says why."""


class _Entry:
    def __init__(self, identity: Identity, priority: Priority) -> None:
        self.identity = identity
        self.priority = priority
        self.turn: Turn | None = None
        self.certificate: WorkloadCertificate | None = None
        self.received_at = 0.0
        self.refused: str | None = None  # why the certificate at hand is not used
        self.error: Exception | None = None
        self.failures = 0
        self.settled = trio.Event()  # the first attempt is over
        self.renew_at = 0.0
        self.woken = trio.Event()  # `renew_at` changed
        self.life = trio.CancelScope()
        self.leaving: trio.CancelScope | None = None

    def hurry(self, priority: Priority) -> None:
        self.priority = min(self.priority, priority)
        if self.turn is not None:
            self.turn.priority = min(self.turn.priority, priority)


class CertificateManager:
    """Keeps a certificate for each identity in use. All methods belong to one trio task tree.

    Args:
        ca: who signs.
        ttl: lifetime to ask for, seconds.
        in_flight: requests to the CA at a time.
        grace: seconds that a forgotten certificate is kept, should its pod come back.
        wall_clock: seconds since the epoch.
        rng: for jitter.
    """

    def __init__(
        self,
        ca: CertificateAuthority,
        *,
        ttl: float = 86400.0,
        in_flight: int = 8,
        grace: float = 60.0,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._ca = ca
        self._ttl = ttl
        self._slots = Slots(in_flight)
        self._grace = grace
        self._now = wall_clock
        self._rng = rng or random.Random()
        self._entries: dict[Identity, _Entry] = {}
        self._listeners: list[Callable[[Identity, WorkloadCertificate | None], None]] = []
        self._revocations = RevocationList()
        self._nursery: trio.Nursery | None = None
        self.statistics = CertificateStatistics()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. Nothing else of this class works without it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def listen(self, listener: Callable[[Identity, WorkloadCertificate | None], None]) -> None:
        """Be told of each new certificate, and by None of one that must not be used any more.

        Listeners are called at once and must neither block nor raise.
        """
        self._listeners.append(listener)

    def prefetch(self, identity: Identity) -> None:
        """Want a certificate soon and from now on, until `forget`."""
        entry = self._entry(identity, Priority.WARMUP)
        if entry.leaving is not None:
            entry.leaving.cancel()
            entry.leaving = None

    async def fetch(self, identity: Identity) -> WorkloadCertificate:
        """The certificate of an identity, waiting for the CA's first answer if need be.

        Raises:
            CertificateUnavailable: the CA refused or could not be asked. While attempts
                fail, this is raised at once, with the last reason.
        """
        entry = self._entry(identity, Priority.REAL_TIME)
        certificate = self._usable(entry)
        if certificate is None and entry.error is None and entry.refused is None:
            await entry.settled.wait()
            certificate = self._usable(entry)
        if certificate is None:
            reason = entry.refused or entry.error or "it expired"
            raise CertificateUnavailable(f"no certificate for {identity.uri}: {reason}")
        return certificate

    def current(self, identity: Identity) -> WorkloadCertificate | None:
        """The certificate to use now, without waiting and without asking for one."""
        entry = self._entries.get(identity)
        return self._usable(entry) if entry is not None else None

    def forget(self, identity: Identity) -> None:
        """Nobody on this node is `identity` any more. Takes effect after the grace time."""
        entry = self._entries.get(identity)
        if entry is None or entry.leaving is not None:
            return
        entry.leaving = trio.CancelScope()
        self._running().start_soon(self._forget_later, entry, entry.leaving)

    def set_revocations(self, revocations: RevocationList) -> None:
        """Judge our own certificates by new lists: a revoked one is dropped and replaced."""
        self._revocations = revocations
        for entry in self._entries.values():
            if entry.certificate is None:
                continue
            was = entry.refused
            entry.refused = self._revoked(entry.certificate)
            if entry.refused is not None and was is None:
                log.error("our certificate of %s is not used: %s", entry.identity, entry.refused)
                self._tell(entry.identity, None)
                entry.hurry(Priority.REAL_TIME)
                self._renew_at(entry, self._now())
            elif entry.refused is None and was is not None:
                self._tell(entry.identity, self._usable(entry))

    def states(self) -> list[CertificateState]:
        """All identities, sorted."""
        return [self._state(self._entries[identity]) for identity in sorted(self._entries)]

    def _state(self, entry: _Entry) -> CertificateState:
        error = entry.refused or (str(entry.error) if entry.error is not None else None)
        if self._usable(entry) is not None:
            phase = "Available"
        elif entry.settled.is_set():
            phase = "Unavailable"
            error = error or "expired"
        else:
            phase = "Initializing"
        return CertificateState(
            entry.identity, phase, entry.certificate, error, entry.failures, entry.renew_at
        )

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("the certificate manager is not running")
        return self._nursery

    def _entry(self, identity: Identity, priority: Priority) -> _Entry:
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry(identity, priority)
            self._running().start_soon(self._keep, entry)
        elif self._usable(entry) is None:
            entry.hurry(priority)
        return entry

    def _usable(self, entry: _Entry) -> WorkloadCertificate | None:
        certificate = entry.certificate
        if certificate is None or entry.refused is not None:
            return None
        return certificate if self._now() < certificate.not_after else None

    def _revoked(self, certificate: WorkloadCertificate) -> str | None:
        reason = self._revocations.revoked(certificate.chain, self._now())
        return f"it is revoked: {reason}" if reason is not None else None

    def _tell(self, identity: Identity, certificate: WorkloadCertificate | None) -> None:
        for listener in self._listeners:
            listener(identity, certificate)

    async def _keep(self, entry: _Entry) -> None:
        with entry.life:
            while True:
                try:
                    certificate = await self._request(entry)
                except Exception as error:
                    self._failed(entry, error)
                else:
                    self._install(entry, certificate)
                entry.settled.set()
                entry.priority = Priority.BACKGROUND
                await self._wait_for_renewal(entry)

    async def _request(self, entry: _Entry) -> WorkloadCertificate:
        entry.turn = Turn(entry.priority)
        try:
            async with self._slots.held(entry.turn):
                return await self._ask(entry.identity)
        finally:
            entry.turn = None

    async def _ask(self, identity: Identity) -> WorkloadCertificate:
        key, csr = make_key_and_csr(identity)
        started = trio.current_time()
        signed = False
        self.statistics.in_flight += 1
        try:
            answer = await self._ca.sign(identity, csr, self._ttl)
            certificate = from_ca_answer(identity, key, answer)
            self._check(certificate)
            signed = True
            return certificate
        finally:
            self.statistics.in_flight -= 1
            self.statistics.seconds += trio.current_time() - started
            if signed:
                self.statistics.signed += 1
            else:
                self.statistics.failed += 1

    def _check(self, certificate: WorkloadCertificate) -> None:
        if certificate.not_after <= self._now():
            raise CertificateError(f"the CA's certificate expired at {_at(certificate.not_after)}")
        reason = self._revoked(certificate)
        if reason is not None:
            raise CertificateError(f"the CA's new certificate is of no use: {reason}")
        if certificate.not_before > self._now():
            log.warning(
                "the certificate of %s is valid only from %s on: clocks differ",
                certificate.identity,
                _at(certificate.not_before),
            )

    def _install(self, entry: _Entry, certificate: WorkloadCertificate) -> None:
        now = self._now()
        remaining = certificate.not_after - now
        entry.certificate = certificate
        entry.received_at = now
        entry.refused = None
        entry.error = None
        entry.failures = 0
        entry.renew_at = now + max(remaining * self._rng.uniform(0.45, 0.55), FIRST_RETRY)
        log.info(
            "certificate of %s, serial number %d, valid until %s",
            entry.identity,
            certificate.serial,
            _at(certificate.not_after),
        )
        self._tell(entry.identity, certificate)
        self._adopt_roots(certificate.roots_pem)

    def _adopt_roots(self, roots_pem: bytes) -> None:
        """What the CA trusts now counts for all of the node, not from each one's renewal on.

        Otherwise peers with certificates of a new root would be refused for hours by those
        of us whose certificate is from before.
        """
        for entry in self._entries.values():
            certificate = entry.certificate
            if certificate is None or certificate.roots_pem == roots_pem:
                continue
            entry.certificate = certificate.with_roots(roots_pem)
            log.info("%s goes by the CA's new roots", entry.identity)
            if self._usable(entry) is not None:
                self._tell(entry.identity, entry.certificate)
            if not entry.certificate.anchored:
                self._renew_soon(entry)

    def _failed(self, entry: _Entry, error: Exception) -> None:
        delay = min(FIRST_RETRY * 2.0 ** min(entry.failures, 16), LAST_RETRY)
        delay *= self._rng.uniform(0.8, 1.2)
        entry.failures += 1
        entry.error = error
        entry.renew_at = self._now() + delay
        words = f"{error or error.__class__.__name__}; asking again in {delay:.1f} s"
        if self._usable(entry) is None:
            log.error("no certificate for %s: %s", entry.identity, words)
        elif entry.certificate is not None:
            log.error(
                "CANNOT RENEW the certificate of %s, which is used until it EXPIRES at %s: %s",
                entry.identity,
                _at(entry.certificate.not_after),
                words,
            )

    def _renew_soon(self, entry: _Entry) -> None:
        earliest = max(self._now(), entry.received_at + _AT_MOST_EVERY)
        if entry.renew_at > earliest + _SPREAD:
            self._renew_at(entry, earliest + self._rng.uniform(0, _SPREAD))

    def _renew_at(self, entry: _Entry, moment: float) -> None:
        entry.renew_at = moment
        entry.woken.set()

    async def _wait_for_renewal(self, entry: _Entry) -> None:
        """Wait until `renew_at`, or until the certificate at hand expires."""
        while True:
            now = self._now()
            until = entry.renew_at
            certificate = self._usable(entry)
            if certificate is not None:
                until = min(until, certificate.not_after)
            if now < until:
                entry.woken = trio.Event()
                with trio.move_on_after(min(until - now, _LONGEST_SLEEP)):
                    await entry.woken.wait()
            if certificate is not None and self._now() >= certificate.not_after:
                log.error("the certificate of %s EXPIRED", entry.identity)
                self._tell(entry.identity, None)
                return
            if self._now() >= entry.renew_at:
                return

    async def _forget_later(self, entry: _Entry, leaving: trio.CancelScope) -> None:
        with leaving:
            await trio.sleep(self._grace)
            entry.error = CertificateUnavailable("no workload of this node uses it any more")
            entry.settled.set()
            entry.life.cancel()
            del self._entries[entry.identity]


def _at(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
