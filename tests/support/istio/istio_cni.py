"""Istio's node agent in a node of a lab, as its DaemonSet would run it there.

It sees a root of its own: the machine's programs, a `/host` that the test made, and a `/run` for
its sockets. Whatever it does to a network it does in the node's namespace and in those of pods.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.istio.binaries import find
from ztunnel.linux.netns import NetworkNamespace

START_SECONDS = 60.0
STOP_SECONDS = 20.0
READY_PORT = 8000
TOOLS = ("unshare", "chroot", "iptables-restore", "ip6tables-restore", "ipset")

_POLL_SECONDS = 0.05
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


class IstioCni:
    """One node's agent; use as a context manager.

    Args:
        node: its name in the API.
        namespace: the node's own network.
        api: (host, port) of the API server, as seen from there.
        account: a folder with the token, ca.crt and namespace of its service account.
        folder: becomes its root.

    Raises:
        IstioUnavailable: there is no binary.
        RuntimeError: it does not start (the text has the end of its log).
    """

    def __init__(
        self,
        node: str,
        namespace: NetworkNamespace,
        api: tuple[str, int],
        account: Path,
        folder: Path,
    ) -> None:
        self._binary = find("install-cni")
        self._node = node
        self._namespace = namespace
        self._api = api
        self._root = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._processes = 1
        self._make_root(account)
        self.log = folder / "run" / "istio-cni.log"
        self._show(1, "0::/\n", namespace)

    @property
    def zds(self) -> Path:
        """Where a ztunnel connects to it."""
        return self._root / "run/ztunnel/ztunnel.sock"

    def show_pod(self, uid: str, namespace: NetworkNamespace) -> None:
        """A process of a pod, as /proc would show it."""
        self._processes += 1
        container = "c" * 64
        self._show(self._processes, f"0::/kubepods/pod{uid}/{container}\n", namespace)

    def __enter__(self) -> IstioCni:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        with self.log.open("ab") as log, self._namespace.enter():
            self._process = subprocess.Popen(
                [
                    *command,
                    str(self._root),
                    str(self._binary),
                    "--log_output_level=default:info,cni-agent:debug",
                ],
                env=self._environment(),
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
        """Ask it to end, as the kubelet does, and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

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

    def _environment(self) -> Mapping[str, str]:
        host, port = self._api
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
            "NODE_NAME": self._node,
            "KUBERNETES_NODE_NAME": self._node,
            "POD_NAME": f"istio-cni-node-{self._node}",
            "POD_NAMESPACE": "istio-system",
            "REPAIR_ENABLED": "false",
            "ISTIO_OWNED_CNI_CONFIG": "false",
        }

    def _wait_until_ready(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")
                raise RuntimeError(
                    f"istio-cni {'ended' if ended else 'is not ready'}: {text[-4000:]}"
                )
            time.sleep(_POLL_SECONDS)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            with self._namespace.enter():
                connection = http.client.HTTPConnection("127.0.0.1", READY_PORT, timeout=5)
                connection.connect()
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        return False
