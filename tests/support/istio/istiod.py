"""Istio's control plane, in ambient mode, as a process below a test's API server."""

from __future__ import annotations

import contextlib
import http.client
import os
from pathlib import Path

from tests.support.istio.binaries import find
from tests.support.kube.cluster import Cluster, free_ports
from tests.support.program import Program

_CALL_SECONDS = 120.0
_MESH = """
trustDomain: cluster.local
defaultConfig: {proxyMetadata: {ISTIO_META_ENABLE_HBONE: "true"}}
"""

# As Istio's ambient profile has it, without what needs a cluster that runs pods.
_ENVIRONMENT = {
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
_ROOTS = "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert"


class Istiod(Program):
    """One istiod. The namespace istio-system must exist.

    Args:
        cluster: whose objects it serves; it has all rights there.
        folder: its working folder: keys, configuration, log.

    Raises:
        Unavailable: there is no binary.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._http, self.plain, self.tls, monitoring = free_ports(4)
        addresses = {
            "httpAddr": self._http,
            "grpcAddr": self.plain,
            "secureGRPCAddr": self.tls,
            "monitoringAddr": monitoring,
        }
        folder.mkdir(parents=True, exist_ok=True)
        mesh = folder / "mesh.yaml"
        mesh.write_text(_MESH)
        networks = folder / "networks.yaml"
        networks.write_text("networks: {}\n")
        command = [
            *(str(find("pilot-discovery")), "discovery"),
            *("--registries=Kubernetes", "--domain=cluster.local"),
            *("--namespace=istio-system", "--ctrlz_port=0", "--httpsAddr="),
            *(f"--kubeconfig={cluster.kubeconfig}", f"--meshConfig={mesh}"),
            *(f"--networksConfig={networks}", "--log_output_level=default:info"),
            *(f"--{name}=127.0.0.1:{port}" for name, port in addresses.items()),
        ]
        environment = {**os.environ, **_ENVIRONMENT}
        super().__init__(
            "istiod", command, folder / "istiod.log", environment=environment, folder=folder
        )

    @property
    def roots_pem(self) -> str:
        """What it gives to every namespace to check it, and all certificates, with.

        Raises:
            ApiFailure: it has not given it yet.
        """
        text: str = self._cluster.call("GET", _ROOTS)["data"]["root-cert.pem"]
        return text

    def is_ready(self) -> bool:
        self.ask("/ready")
        return self._cluster.has(_ROOTS)

    def ask(self, path: str) -> str:
        """GET from its HTTP port, which has its debug pages. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_CALL_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise OSError(f"{path}: {response.status} {text.strip()}")
            return text
