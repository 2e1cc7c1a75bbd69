"""Istio's node agent in a node of a lab, as its DaemonSet would run it there.

It sees a root of its own: the machine's programs, a `/host` that the test made, and a `/run` for
its sockets. Whatever it does to a network it does in the node's namespace and in those of pods.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
from pathlib import Path

from tests.support.istio.binaries import find
from tests.support.program import Program
from ztunnel.linux.netns import NetworkNamespace

STOP_SECONDS = 20.0
READY_PORT = 8000
TOOLS = ("unshare", "chroot", "iptables-restore", "ip6tables-restore", "ipset")

_SHARED = ("usr", "etc", "proc", "dev", "sys")
_ENTER = """
set -eu
root=$1; mount --bind "$2" "$root/install-cni"; shift 2
for name in %s; do mkdir -p "$root/$name"; mount --rbind "/$name" "$root/$name"; done
exec chroot "$root" /install-cni "$@"
""" % " ".join(_SHARED)  # noqa: UP031
# As Istio's chart has it: the pod's own label comes first, either way.
_SELECTORS = """
- podSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}
- namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}
  podSelector:
    matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]
"""
_NETWORK = '{"cniVersion": "0.4.0", "name": "kindnet", "plugins": [{"type": "ptp"}]}'


class IstioCni(Program):
    """One node's agent.

    Args:
        node: its name in the API.
        namespace: the node's own network.
        api: (host, port) of the API server, as seen from there.
        account: a folder with the token, ca.crt and namespace of its service account.
        folder: becomes its root.

    Raises:
        Unavailable: there is no binary.
    """

    def __init__(
        self,
        node: str,
        namespace: NetworkNamespace,
        api: tuple[str, int],
        account: Path,
        folder: Path,
    ) -> None:
        self._root = folder
        self._network = namespace
        self._processes = 1
        self._make_root(account)
        self._show(1, "0::/\n", namespace)
        command = [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"),
            *(str(folder), str(find("install-cni"))),
            "--log_output_level=default:info,cni-agent:debug",
        ]
        super().__init__(
            "istio-cni",
            command,
            folder / "run" / "istio-cni.log",
            namespace=namespace,
            environment=_environment(node, api),
            grace=STOP_SECONDS,
        )

    @property
    def zds(self) -> Path:
        """Where a ztunnel connects to it."""
        return self._root / "run/ztunnel/ztunnel.sock"

    def show_pod(self, uid: str, namespace: NetworkNamespace) -> None:
        """A process of a pod, as /proc would show it."""
        self._processes += 1
        container = "c" * 64
        self._show(self._processes, f"0::/kubepods/pod{uid}/{container}\n", namespace)

    def is_ready(self) -> bool:
        with self._network.enter():
            connection = http.client.HTTPConnection("127.0.0.1", READY_PORT, timeout=5)
            connection.connect()
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200

    def _make_root(self, account: Path) -> None:
        root = self._root
        for name in (
            *("host/etc/cni/net.d", "host/opt/cni/bin", "host/var/run/netns", "host/proc"),
            *("opt/cni/bin", "run/ztunnel", "run/istio-cni", "tmp", "var"),
        ):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "var/run").symlink_to("/run")
        shutil.copytree(account, root / "run/secrets/kubernetes.io/serviceaccount")
        (root / "install-cni").touch()
        (root / "opt/cni/bin/istio-cni").write_text("#!/bin/false\n")
        (root / "host/etc/cni/net.d/10-kindnet.conflist").write_text(_NETWORK)

    def _show(self, pid: int, cgroup: str, namespace: NetworkNamespace) -> None:
        folder = self._root / "host/proc" / str(pid)
        (folder / "ns").mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} (app) S " + "0 " * 18 + f"{pid} 0 0\n")
        (folder / "cgroup").write_text(cgroup)
        (folder / "ns/net").symlink_to(f"/proc/{os.getpid()}/fd/{namespace.fd}")


def _environment(node: str, api: tuple[str, int]) -> dict[str, str]:
    host, port = api
    return {
        "PATH": os.environ["PATH"],
        "AMBIENT_ENABLED": "true",
        "AMBIENT_ENABLEMENT_SELECTOR": _SELECTORS,
        "AMBIENT_DNS_CAPTURE": "true",
        "AMBIENT_IPV6": "true",
        "CHAINED_CNI_PLUGIN": "true",
        "CNI_NET_DIR": "/etc/cni/net.d",
        "EXCLUDE_NAMESPACES": "kube-system",
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": str(port),
        "NODE_NAME": node,
        "KUBERNETES_NODE_NAME": node,
        "POD_NAME": f"istio-cni-node-{node}",
        "POD_NAMESPACE": "istio-system",
        "REPAIR_ENABLED": "false",
        "ISTIO_OWNED_CNI_CONFIG": "false",
    }
