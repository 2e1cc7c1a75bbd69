"""Pods of tests, and what is asked from inside them."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from tests.support.cluster.cluster import NodeCluster
from tests.support.cluster.images import IMAGE
from tests.support.kube.api import Json
from tests.support.program import wait_for
from ztunnel.linux.netns import NetworkNamespace

HTTP_PORT = 8080
ANSWER_SECONDS = 10.0
_BETWEEN_SECONDS = 0.02
NO_ANSWER = (OSError, http.client.HTTPException)


def application(namespace: str, name: str, node: str, account: str = "default") -> Json:
    """A pod that answers HTTP on 8080 with the caller's address, and is probed there."""
    # One that fails twice counts: nothing of the mesh may make it fail for longer than a moment.
    # Its patience is for a busy machine.
    probe = {
        "httpGet": {"path": "/", "port": HTTP_PORT},
        "periodSeconds": 1,
        "failureThreshold": 2,
        "timeoutSeconds": 5,
    }
    container = {
        "name": "app",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "daemonset.local.app", "serve", "--http", str(HTTP_PORT)],
        "ports": [{"containerPort": HTTP_PORT}],
        "readinessProbe": probe,
    }
    spec = {
        "nodeName": node,
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
    meta = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def service(namespace: str, name: str, **more: object) -> Json:
    """Port 80 of the pods labelled with its name; `more` goes into the spec."""
    port = {"name": "http", "port": 80, "targetPort": HTTP_PORT}
    spec = {"selector": {"app": name}, "ports": [port], **more}
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


class RunningPod:
    """A pod as it is now: it has a new address and a new namespace after its node's reboot."""

    def __init__(self, cluster: NodeCluster, namespace: str, name: str) -> None:
        self._cluster = cluster
        self.path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.network: NetworkNamespace | None = None

    @property
    def now(self) -> Json:
        found: Json = self._cluster.api.call("GET", self.path)
        return found

    @property
    def address(self) -> str:
        """That of IPv4; which of the two is the first one depends on the node."""
        [address] = [each["ip"] for each in self.now["status"]["podIPs"] if "." in each["ip"]]
        return str(address)

    @property
    def address_v6(self) -> str:
        [address] = [each["ip"] for each in self.now["status"]["podIPs"] if ":" in each["ip"]]
        return str(address)

    @property
    def probed_address(self) -> str:
        """Where the kubelet's probes go: its first one."""
        address: str = self.now["status"]["podIP"]
        return address

    @property
    def redirection(self) -> str | None:
        """What the node agent has written to it."""
        annotations = self.now["metadata"].get("annotations", {})
        value: str | None = annotations.get("ambient.istio.io/redirection")
        return value

    @property
    def restarts(self) -> int:
        return sum(each["restartCount"] for each in self.now["status"]["containerStatuses"])

    def is_ready(self) -> bool:
        conditions = self.now["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def is_ending(self) -> bool:
        """Whether it has been told to end, or is gone."""
        found = self._cluster.get(self.path)
        return found is None or "deletionTimestamp" in found["metadata"]

    def wait_ready(self) -> RunningPod:
        wait_for(f"{self.path} is ready", self.is_ready)
        return self

    def wait_redirection(self, value: str | None) -> None:
        wait_for(f"{self.path} is {value}", lambda: (self.redirection == value) or None)

    def enter(self) -> NetworkNamespace:
        """Its network namespace, to be closed by the caller."""
        now = self.now
        node = self._cluster.nodes[now["spec"]["nodeName"]]
        meta = now["metadata"]
        # On its node a static pod goes by another name than the API server gives it.
        uid = meta.get("annotations", {}).get("kubernetes.io/config.hash", meta["uid"])
        return node.pod_network(uid)

    def kill(self, *, sandbox: bool = False) -> None:
        """See `Node.kill_pod`."""
        now = self.now
        node = self._cluster.nodes[now["spec"]["nodeName"]]
        node.kill_pod(now["metadata"]["uid"], sandbox=sandbox)

    def wait_restarted(self, restarts: int) -> None:
        """Until it is ready again after more restarts than these."""

        def again() -> bool:
            return self.restarts > restarts and self.is_ready()

        wait_for(f"{self.path} has started again", again)

    def logs(self) -> str:
        """What its container has said since it was last started."""
        _, namespace, _, name = self.path.rsplit("/", 3)
        return self._cluster.kubectl("-n", namespace, "logs", name, "--tail=-1")

    def get(self, host: str, port: int = HTTP_PORT, path: str = "/") -> Json:
        """A request from this pod on a connection of its own, and the answer.

        Raises OSError, http.client.HTTPException.
        """
        with self.enter() as network:
            return ask(network, host, port, path)


def ask(network: NetworkNamespace, host: str, port: int, path: str = "/") -> Json:
    """A request from a namespace. Raises OSError, http.client.HTTPException."""
    with contextlib.closing(_connected(network, host, port)) as connection:
        return _answer(connection, path)


def _connected(network: NetworkNamespace, host: str, port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    with network.enter():
        connection.connect()
    connection.auto_open = 0  # not again, from this process's own namespace
    return connection


def _answer(connection: http.client.HTTPConnection, path: str) -> Json:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"status {answer.status}")
    found: Json = json.loads(body)
    return found


@dataclass(slots=True)
class Outcome:
    """How many requests were answered, and what became of the others."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Requests from a namespace, one after the other; a context manager.

    Each is made on a new connection, or (`kept`) all on one until it ends. The namespace may be
    that of a pod which goes away: then its requests fail.
    """

    def __init__(
        self,
        network: NetworkNamespace,
        host: str,
        port: int,
        path: str = "/",
        *,
        kept: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self._kept = _connected(network, host, port) if kept else None
        self._path = path
        self._target: Callable[[], Json] = lambda: ask(network, host, port, path)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"traffic to {host}:{port}")

    def _run(self) -> None:
        started = time.monotonic()
        while not self._over.wait(_BETWEEN_SECONDS):
            try:
                if self._kept is None:
                    self._target()
                else:
                    _answer(self._kept, self._path)
                self.outcome.answered += 1
            except NO_ANSWER as error:
                at = time.monotonic() - started
                self.outcome.failures.append(f"{at:.2f} s: {type(error).__name__}: {error}")
                if self._kept is not None:
                    return

    def more(self, number: int = 20) -> None:
        """Wait until so many more were answered. Raises NotInTime."""
        wanted = self.outcome.answered + number
        wait_for(
            f"{number} more answers ({self.outcome.failures[-3:]})",
            lambda: self.outcome.answered >= wanted,
        )

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._kept is not None:
            self._kept.close()
