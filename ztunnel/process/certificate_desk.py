"""The control process's part in certificates: it gets them, and hands them to the workers."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import ProxyMode
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.identity import Identity, IdentityError
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.process import messages
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.counters import Counters
from ztunnel.tls.ca_client import CaClient
from ztunnel.tls.certificates import (
    CertificateManager,
    CertificateUnavailable,
    WorkloadCertificate,
)
from ztunnel.tls.crl import CrlFile

log = logging.getLogger("ztunnel.control")

WATCH_EVERY: Final = 2.0  # seconds between looks at a file that may have changed
_EXPIRY: Final = "ztunnel_certificate_expiry_timestamp_seconds"
_UNWANTED: Final = "it expired or was revoked, and there is no other one yet"


class Authority:
    """The CA, timed; or the reason why there is none. Raises ValueError for a useless address."""

    def __init__(self, config: Config, counters: Counters) -> None:
        self._counters = counters
        self._client: CaClient | None = None
        if config.ca.address is not None:
            roots = config.ca.roots
            root: Path | bytes | None = roots.path if roots.path is not None else roots.read()
            self._client = CaClient(
                config.ca.address,
                root=root,
                token=config.token.path or config.token.literal,
                cluster_id=config.node.cluster_id,
                headers=config.ca.headers,
                server_name=config.ca.alternative_hostname,
                impersonate=config.mode is ProxyMode.SHARED,
            )

    async def sign(self, identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        """See `CertificateAuthority`."""
        if self._client is None:
            raise RuntimeError("CA_ADDRESS is empty: there is no certificate authority")
        started = trio.current_time()
        result = "failed"
        try:
            answer = await self._client.sign(identity, csr_pem, ttl)
            result = "signed"
            return answer
        finally:
            self._counters.histogram("ztunnel_csr_duration_seconds", result).observe(
                trio.current_time() - started
            )


class CertificateDesk:
    """Certificates for workers, and ahead of need for the workloads of this node.

    Args:
        workers: by slot.
    """

    def __init__(
        self,
        config: Config,
        state: MeshState,
        workers: dict[int, WorkerLink],
        counters: Counters,
    ) -> None:
        self._config = config
        self._state = state
        self._workers = workers
        self._counters = counters
        self._prefetched: set[Identity] = set()
        self._local: dict[str, Identity] = {}  # of this node's workloads, by uid
        self._running: dict[Identity, set[str]] = {}  # and the other way round
        self._crl = CrlFile(config.ca.crl_path) if config.ca.crl_path is not None else None
        self.manager = CertificateManager(
            Authority(config, counters), ttl=config.ca.certificate_lifetime
        )
        self.manager.listen(self._changed)

    async def answer(self, worker: WorkerLink, uri: str) -> None:
        """A worker wants a certificate; from now on it also gets each renewal."""
        worker.identities.add(uri)
        try:
            certificate = await self.manager.fetch(Identity.parse(uri))
        except (CertificateUnavailable, IdentityError) as error:
            worker.send(messages.CERTIFICATE_FAILED, uri, str(error))
        else:
            worker.send(messages.CERTIFICATE, certificate.to_bytes())

    def _changed(self, identity: Identity, certificate: WorkloadCertificate | None) -> None:
        if certificate is None:
            self._counters.forget(_EXPIRY, identity.uri)
        else:
            self._counters.gauge(_EXPIRY, identity.uri).set(certificate.not_after)
        for worker in self._workers.values():
            if identity.uri not in worker.identities:
                continue
            if certificate is None:
                worker.send(messages.CERTIFICATE_WITHDRAWN, identity.uri, _UNWANTED)
            else:
                worker.send(messages.CERTIFICATE, certificate.to_bytes())

    # ---- ahead of need

    def mesh_changed(self, changes: Changes) -> None:
        """Asks for the certificates of this node's workloads before anybody needs them."""
        node = self._config.node.node_name
        if not node or self._config.mode is ProxyMode.DEDICATED:
            return
        for uid in changes.workloads:
            workload = self._state.workload(uid)
            here = workload if workload is not None and workload.node == node else None
            if here is not None and (
                here.tunnel_protocol is TunnelProtocol.HBONE or here.native_tunnel
            ):
                self._prefetched.add(here.identity)
                self.manager.prefetch(here.identity)
            self._runs_as(uid, here.identity if here is not None else None)

    def _runs_as(self, uid: str, identity: Identity | None) -> None:
        """A workload of this node now has that identity, or is no more."""
        before = self._local.pop(uid, None)
        if identity is not None:
            self._local[uid] = identity
            self._running.setdefault(identity, set()).add(uid)
        if before is None or before == identity:
            return
        others = self._running[before]
        others.discard(uid)
        if not others:
            del self._running[before]
            if before in self._prefetched:
                self._prefetched.discard(before)
                self.manager.forget(before)
                for worker in self._workers.values():
                    if before.uri in worker.identities:
                        worker.identities.discard(before.uri)
                        worker.send(messages.CERTIFICATE_FORGOTTEN, before.uri)

    async def settled(self, identities: Iterable[Identity], seconds: float) -> list[str]:
        """Waits until the CA has answered for each of these, well or not, for so long at most.

        Returns:
            URIs of those for which it has not answered.
        """
        wanted = {identity.uri for identity in identities}
        with trio.move_on_after(seconds):
            while wanted:
                for state in self.manager.states():
                    if state.phase != "Initializing":
                        wanted.discard(state.identity.uri)
                if wanted:
                    await trio.sleep(0.05)
        return sorted(wanted)

    # ---- revocation

    def read_revocations(self) -> None:
        """Looks at the CRL file, and tells everybody when it is new."""
        if self._crl is not None and self._crl.refresh():
            self.manager.set_revocations(self._crl.current)
            for worker in self._workers.values():
                worker.send(messages.REVOCATIONS, self._crl.data)

    async def watch_revocations(self) -> None:
        """Does so again and again."""
        while True:
            await trio.sleep(WATCH_EVERY)
            self.read_revocations()

    def welcome(self, worker: WorkerLink) -> None:
        """A worker gets the revocations in force; an old one may know some that are lifted."""
        if self._crl is not None:
            worker.send(messages.REVOCATIONS, self._crl.data)
