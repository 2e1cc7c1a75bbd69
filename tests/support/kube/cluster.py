"""A Kubernetes API on loopback: a real etcd and kube-apiserver, without controllers or nodes.

Nothing runs the pods that are created here, and nobody makes default service accounts or finishes
the deletion of a namespace: a test plays those parts itself where it needs them.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
from pathlib import Path
from types import TracebackType

from tests.support.kube.api import CALL_SECONDS, Api, ApiFailure, Json, send
from tests.support.kube.binaries import find
from tests.support.kube.keys import Keys
from tests.support.ports import free_ports
from tests.support.program import Program

__all__ = ["ApiFailure", "Cluster", "Json", "free_ports", "send"]

# Asked to end, they would wait for their clients, and there is nothing here worth saving.
_GRACE = 0.0


class Cluster(Api):
    """One API server with an etcd of its own; use as a context manager.

    Args:
        folder: for keys, data and logs.
        server: which of the API servers (see ``binaries``).

    Raises:
        Unavailable: there are no binaries.
        ProgramEnded, NotInTime: one of them does not start.
    """

    def __init__(self, folder: Path, server: str = "kube-apiserver") -> None:
        keys = Keys(folder)
        keys.server("server", ["127.0.0.1", "localhost"])
        keys.accounts()
        etcd_port, peer_port, port = free_ports(3)
        super().__init__(keys, "127.0.0.1", port)
        self._etcd = _Etcd(folder, etcd_port, peer_port)
        self._server = _ApiServer(self, find(server), self._etcd.url)

    def __enter__(self) -> Cluster:
        try:
            self._etcd.start()
            self.start_api()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End both processes, and wait for them; the data of this etcd is removed."""
        self._etcd.stop()
        self._server.stop()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def stop_api(self) -> None:
        """End the API server; etcd keeps what it has."""
        self._server.stop()

    def start_api(self) -> None:
        """Start the API server, and wait until it is ready."""
        self._server.start()

    def compact(self) -> None:
        """Forget the history: resuming a watch from before answers 410 after the API's restart."""
        status = self._etcd.ask("/v3/maintenance/status", {})
        revision = int(status["header"]["revision"])
        self._etcd.ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})


class _Etcd(Program):
    def __init__(self, folder: Path, port: int, peer_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        peers = f"http://127.0.0.1:{peer_port}"
        command = [
            *(str(find("etcd")), "--name=e", f"--data-dir={folder / 'etcd'}"),
            *("--unsafe-no-fsync", "--log-level=warn"),
            *(f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=e={peers}",
        ]
        super().__init__("etcd", command, folder / "etcd.log", grace=_GRACE)

    def ask(self, path: str, body: Json) -> Json:
        """One call of its API, as JSON."""
        host = self.url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=CALL_SECONDS)) as to:
            result: Json = send(to, "POST", path, body)
            return result

    def is_ready(self) -> bool:
        with contextlib.suppress(ApiFailure):
            return bool(self.ask("/v3/maintenance/status", {}))
        return False


class _ApiServer(Program):
    def __init__(self, api: Api, binary: Path, etcd_url: str) -> None:
        self._api = api
        at = api.folder
        command = [
            *(str(binary), f"--etcd-servers={etcd_url}"),
            *("--bind-address=127.0.0.1", f"--secure-port={api.port}"),
            "--endpoint-reconciler-type=none",  # a loopback address may not stand in a slice
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--client-ca-file={api.ca_file}",
            f"--tls-cert-file={at / 'server.crt'}",
            f"--tls-private-key-file={at / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at / 'accounts.pub'}",
            f"--service-account-signing-key-file={at / 'accounts.key'}",
            "--authorization-mode=RBAC",
            # It would wait for accounts that only a controller makes.
            "--disable-admission-plugins=ServiceAccount",
        ]
        super().__init__("kube-apiserver", command, at / "kube-apiserver.log", grace=_GRACE)

    def is_ready(self) -> bool:
        return self._api.has("/readyz")
