"""The certificates that a worker holds. The control process gets and renews them.

A worker asks once per identity; from then on the control process sends each
renewal without being asked. While the control process is away, what is here
is used until it expires, and what is missing is refused with that reason.
"""

import time
from collections.abc import Callable

import trio

from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import WorkloadCertificate


class CertificateUnavailable(Exception):
    """There is no certificate for an identity; the message says why."""


class _Entry:
    __slots__ = ("asked", "certificate", "changed", "error")

    def __init__(self) -> None:
        self.certificate: WorkloadCertificate | None = None
        self.error = ""
        self.asked = False
        self.changed = trio.Event()


class CertificateStore:
    """Certificates by identity.

    Args:
        ask: sends a request for an identity's URI to the control process; false when it is away.
    """

    def __init__(self, ask: Callable[[str], bool]) -> None:
        self._ask = ask
        self._entries: dict[str, _Entry] = {}

    def get(self, identity: Identity) -> WorkloadCertificate | None:
        """The certificate if it is here and valid, without waiting."""
        entry = self._entries.get(identity.uri)
        if entry is None or entry.certificate is None:
            return None
        return entry.certificate if entry.certificate.not_after > time.time() else None

    def want(self, identity: Identity) -> None:
        """Asks ahead of need."""
        self._entry(identity)

    async def wait(self, identity: Identity, seconds: float) -> WorkloadCertificate:
        """The certificate, waiting for it if need be.

        Args:
            seconds: the longest wait.

        Raises:
            CertificateUnavailable: the authority refused, or nothing came in time.
        """
        entry = self._entry(identity)
        with trio.move_on_after(seconds):
            while True:
                found = self.get(identity)
                if found is not None:
                    return found
                if entry.error:
                    raise CertificateUnavailable(
                        f"no certificate for {identity.uri}: {entry.error}"
                    )
                await entry.changed.wait()
        if not entry.asked:
            raise CertificateUnavailable(
                f"no certificate for {identity.uri}: the control process is not there"
            )
        raise CertificateUnavailable(
            f"no certificate for {identity.uri} within {seconds:g}s; is the CA reachable?"
        )

    def received(self, certificate: WorkloadCertificate) -> None:
        """The control process sent a certificate, the first or a renewed one."""
        entry = self._entries.setdefault(certificate.identity.uri, _Entry())
        entry.certificate = certificate
        entry.error = ""
        self._changed(entry)

    def failed(self, uri: str, reason: str) -> None:
        """The control process could not get one (now); it keeps trying."""
        entry = self._entries.setdefault(uri, _Entry())
        entry.error = reason
        self._changed(entry)

    def withdrawn(self, uri: str, reason: str) -> None:
        """The certificate at hand must not be used any more."""
        entry = self._entries.get(uri)
        if entry is not None:
            entry.certificate = None
            self.failed(uri, reason)

    def forget(self, identity: Identity) -> None:
        """No pod here is that identity any more."""
        self._entries.pop(identity.uri, None)

    def forgotten(self, uri: str) -> None:
        """The control process renews it no longer: whoever needs it must ask again."""
        entry = self._entries.get(uri)
        if entry is not None:
            entry.certificate = None
            entry.error = ""
            entry.asked = False

    def control_lost(self) -> None:
        """The control process is gone: what was asked must be asked again."""
        for entry in self._entries.values():
            entry.asked = False

    def control_back(self) -> None:
        """A control process is there: tell it what is in use here."""
        for uri, entry in self._entries.items():
            entry.asked = self._ask(uri)

    def _entry(self, identity: Identity) -> _Entry:
        entry = self._entries.get(identity.uri)
        if entry is None:
            entry = self._entries[identity.uri] = _Entry()
        if not entry.asked:
            entry.asked = self._ask(identity.uri)
        return entry

    @staticmethod
    def _changed(entry: _Entry) -> None:
        entry.changed.set()
        entry.changed = trio.Event()
