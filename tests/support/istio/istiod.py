"""Istio's control plane, in ambient mode, as a process below a test's API server."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.istio.binaries import find
from tests.support.kube.cluster import ApiFailure, Cluster, free_ports

START_SECONDS = 120.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05

_MESH = """
trustDomain: cluster.local
defaultConfig: {proxyMetadata: {ISTIO_META_ENABLE_HBONE: "true"}}
"""


class Istiod:
    """One istiod; use as a context manager. The namespace istio-system must exist.

    Args:
        cluster: whose objects it serves; it has all rights there.
        folder: its working folder: keys, configuration, log.

    Raises:
        IstioUnavailable: there is no binary.
        RuntimeError: it does not start (the text has the end of its log).
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._binary = find("pilot-discovery")
        self._cluster = cluster
        self.folder = folder
        self.log = folder / "istiod.log"
        self._http, self.plain, self.tls, self._monitoring = free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def roots_pem(self) -> str:
        """What it gives to every namespace to check it, and all certificates, with.

        Raises:
            ApiFailure: it has not given it yet.
        """
        found = self._cluster.call(
            "GET", "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert"
        )
        text: str = found["data"]["root-cert.pem"]
        return text

    def __enter__(self) -> Istiod:
        self.folder.mkdir(parents=True, exist_ok=True)
        mesh = self.folder / "mesh.yaml"
        mesh.write_text(_MESH)
        networks = self.folder / "networks.yaml"
        networks.write_text("networks: {}\n")
        command = [
            *(str(self._binary), "discovery", "--registries=Kubernetes", "--domain=cluster.local"),
            *("--namespace=istio-system", "--ctrlz_port=0", "--httpsAddr="),
            *(f"--kubeconfig={self._cluster.kubeconfig}", f"--meshConfig={mesh}"),
            *(f"--networksConfig={networks}", "--log_output_level=default:info"),
            *(f"--{name}=127.0.0.1:{port}" for name, port in self._addresses()),
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **_environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_ready()
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
        """End the process now, and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ask(self, path: str) -> str:
        """GET from its HTTP port, which has its debug pages. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=START_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise OSError(f"{path}: {response.status} {text.strip()}")
            return text

    def _addresses(self) -> list[tuple[str, int]]:
        return [
            ("httpAddr", self._http),
            ("grpcAddr", self.plain),
            ("secureGRPCAddr", self.tls),
            ("monitoringAddr", self._monitoring),
        ]

    def _wait_until_ready(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ApiFailure):
                self.ask("/ready")
                assert self.roots_pem
                return
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")
                raise RuntimeError(f"istiod {'ended' if ended else 'is not ready'}: {text[-4000:]}")
            time.sleep(_POLL_SECONDS)


def _environment() -> dict[str, str]:
    """As Istio's ambient profile has it, without what needs a cluster that runs pods."""
    return {
        "PILOT_ENABLE_AMBIENT": "true",
        "CA_TRUSTED_NODE_ACCOUNTS": "istio-system/ztunnel",
        "CLUSTER_ID": "Kubernetes",
        "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY": "true",
        "POD_NAME": "istiod-1",
        "POD_NAMESPACE": "istio-system",
        "PILOT_CERT_PROVIDER": "istiod",
        "TOKEN_AUDIENCES": "istio-ca",
        "REVISION": "default",
        "INJECTION_WEBHOOK_CONFIG_NAME": "",
        "VALIDATION_WEBHOOK_CONFIG_NAME": "",
        # The status of gateways is the test's to write, and nobody runs what would be deployed.
        "PILOT_ENABLE_GATEWAY_API_STATUS": "false",
        "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",
        "PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER": "false",
    }
