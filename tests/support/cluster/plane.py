"""The control plane of a cluster with nodes: etcd, API server, controllers, scheduler, DNS."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path

from tests.support.cluster.links import API_PORT, HOST_V4, HOST_V6, SERVICES_V4, SERVICES_V6
from tests.support.cluster.node_files import DNS_ADDRESS
from tests.support.cluster.programs import Programs
from tests.support.kube.api import Api, Json
from tests.support.kube.binaries import find
from tests.support.kube.keys import Keys
from tests.support.program import wait_for
from ztunnel.linux.netns import NetworkNamespace

_ETCD = "http://127.0.0.1:2379"
_ETCD_PEERS = "http://127.0.0.1:2380"
_DOMAIN = "cluster.local"


class NodeApi(Api):
    """An API server in a network namespace."""

    def __init__(self, keys: Keys, namespace: NetworkNamespace) -> None:
        super().__init__(keys, HOST_V4, API_PORT)
        self._namespace = namespace

    def connect(self, token: str = "") -> http.client.HTTPSConnection:
        """Connected at once: a socket stays in the namespace where it was made."""
        connection = super().connect(token)
        with self._namespace.enter():
            connection.connect()
        return connection


def make_keys(folder: Path) -> Keys:
    """For everything that `start_plane` starts, and for kube-proxy."""
    keys = Keys(folder)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    keys.server("server", [HOST_V4, HOST_V6, "10.96.0.1", *names])
    keys.client("kubelets", "kube-apiserver", "system:masters")
    keys.client("controllers", "system:kube-controller-manager")
    keys.client("scheduler", "system:kube-scheduler")
    keys.client("kube-proxy", "system:kube-proxy")
    keys.accounts()
    return keys


def start_plane(keys: Keys, api: NodeApi, namespace: NetworkNamespace, programs: Programs) -> None:
    """Returns when the API serves and accounts are made. Raises NotInTime, ProgramEnded."""
    at = keys.folder

    def start(name: str, *arguments: str) -> None:
        programs.start(name, [str(find(name)), *arguments], namespace=namespace)

    start(
        "etcd",
        "--name=e",
        f"--data-dir={at / 'etcd'}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEERS}",
        f"--initial-advertise-peer-urls={_ETCD_PEERS}",
        f"--initial-cluster=e={_ETCD_PEERS}",
    )
    start(
        "kube-apiserver",
        f"--etcd-servers={_ETCD}",
        f"--bind-address={HOST_V4}",
        f"--advertise-address={HOST_V4}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICES_V4},{SERVICES_V6}",
        f"--client-ca-file={api.ca_file}",
        f"--tls-cert-file={at / 'server.crt'}",
        f"--tls-private-key-file={at / 'server.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{_DOMAIN}",
        f"--service-account-key-file={at / 'accounts.pub'}",
        f"--service-account-signing-key-file={at / 'accounts.key'}",
        f"--kubelet-client-certificate={at / 'kubelets.crt'}",
        f"--kubelet-client-key={at / 'kubelets.key'}",
        f"--kubelet-certificate-authority={api.ca_file}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    )
    _wait(programs, "kube-apiserver", api, "/readyz")
    start(
        "kube-controller-manager",
        f"--kubeconfig={keys.kubeconfig('controllers', api.url)}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--root-ca-file={api.ca_file}",
        f"--service-account-private-key-file={at / 'accounts.key'}",
        "--use-service-account-credentials",
        "--node-monitor-grace-period=16s",
        "--controllers=*,-nodeipam,-node-route-controller,-cloud-node-lifecycle-controller",
    )
    start(
        "kube-scheduler",
        f"--kubeconfig={keys.kubeconfig('scheduler', api.url)}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    )
    (at / "Corefile").write_text(_corefile(api.kubeconfig))
    start("coredns", "-conf", str(at / "Corefile"))
    for item in _dns_objects():
        api.apply(item)
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    _wait(programs, "kube-controller-manager", api, account)


def _wait(programs: Programs, name: str, api: NodeApi, path: str) -> None:
    def answers() -> bool:
        programs.check(name)
        with contextlib.suppress(OSError, http.client.HTTPException):
            return api.has(path)
        return False

    wait_for(f"{name} is ready", answers)


def _corefile(kubeconfig: Path) -> str:
    return f""".:53 {{
  bind {HOST_V4}
  errors
  kubernetes {_DOMAIN} in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig}
    ttl 5
  }}
  cache 5
}}
"""


def _dns_objects() -> list[Json]:
    """CoreDNS runs beside the API server, not in a pod; pods find it as always."""
    ports: list[Json] = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    meta = {"name": "kube-dns", "namespace": "kube-system"}
    service: Json = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"clusterIP": DNS_ADDRESS, "ports": ports},
    }
    endpoints: Json = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [HOST_V4], "conditions": {"ready": True}}],
    }
    return [service, endpoints]
