"""A Kubernetes API on loopback: a real etcd and kube-apiserver, without controllers or nodes.

Nothing runs the pods that are created here, and nobody makes default service accounts or finishes
the deletion of a namespace: a test plays those parts itself where it needs them.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.kube.api import CALL_SECONDS, Api, ApiFailure, Json, send
from tests.support.kube.binaries import find
from tests.support.kube.keys import Keys
from tests.support.ports import free_ports

__all__ = ["ApiFailure", "Cluster", "Json", "free_ports", "send"]

START_SECONDS = 120.0
_POLL_SECONDS = 0.05
_CLOSED = (OSError, http.client.HTTPException)


class Cluster(Api):
    """One API server with an etcd of its own; use as a context manager.

    Args:
        folder: for keys, data and logs.
        server: which of the API servers (see ``binaries``).

    Raises:
        KubernetesUnavailable: there are no binaries.
        RuntimeError: one of them does not start (the text has the end of its log).
    """

    def __init__(self, folder: Path, server: str = "kube-apiserver") -> None:
        self._binaries = {"etcd": find("etcd"), "kube-apiserver": find(server)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        keys = Keys(folder)
        keys.server("server", ["127.0.0.1", "localhost"])
        keys.accounts()
        etcd_port, peer_port, port = free_ports(3)
        super().__init__(keys, "127.0.0.1", port)
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"

    def __enter__(self) -> Cluster:
        try:
            self._start_etcd()
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
        for name in list(self._running):
            self._end(name)
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def stop_api(self) -> None:
        """End the API server; etcd keeps what it has."""
        self._end("kube-apiserver")

    def start_api(self) -> None:
        """Start the API server, and wait until it is ready."""
        at = self.folder
        self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--endpoint-reconciler-type=none",  # a loopback address may not stand in a slice
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--client-ca-file={self.ca_file}",
            f"--tls-cert-file={at / 'server.crt'}",
            f"--tls-private-key-file={at / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at / 'accounts.pub'}",
            f"--service-account-signing-key-file={at / 'accounts.key'}",
            "--authorization-mode=RBAC",
            # It would wait for accounts that only a controller makes.
            "--disable-admission-plugins=ServiceAccount",
        )
        self._wait("kube-apiserver", lambda: self.call("GET", "/readyz"))

    def compact(self) -> None:
        """Forget the history: resuming a watch from before answers 410 after the API's restart."""
        status = self._etcd("/v3/maintenance/status", {})
        revision = int(status["header"]["revision"])
        self._etcd("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    def _etcd(self, path: str, body: Json) -> Json:
        host = self._etcd_url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=CALL_SECONDS)) as to:
            result: Json = send(to, "POST", path, body)
            return result

    def _start_etcd(self) -> None:
        self._start(
            "etcd",
            "--name=e",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            f"--initial-cluster=e={self._peer_url}",
        )
        self._wait("etcd", lambda: self._etcd("/v3/maintenance/status", {}))

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [str(self._binaries[name]), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, name: str, ask: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(*_CLOSED, ApiFailure):
                ask()
                return
            ended = self._running[name].poll() is not None
            if ended or time.monotonic() > deadline:
                text = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} {'ended' if ended else 'is not ready'}: {text[-3000:]}")
            time.sleep(_POLL_SECONDS)

    def _end(self, name: str) -> None:
        # Asked to end, it would wait for its clients, and there is nothing here worth saving.
        process = self._running.pop(name)
        process.kill()
        process.wait()
