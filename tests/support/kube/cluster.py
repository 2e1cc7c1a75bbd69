"""A Kubernetes API on loopback: a real etcd and kube-apiserver, without controllers or nodes.

Nothing runs the pods that are created here, and nobody makes default service accounts or finishes
the deletion of a namespace: a test plays those parts itself where it needs them.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemonset.control_plane.ca.issuer import Issuer, key_to_pem, new_key, new_root, to_pem
from tests.support.kube.binaries import find

START_SECONDS = 120.0
CALL_SECONDS = 60.0
_POLL_SECONDS = 0.05
_DAY = datetime.timedelta(days=1)
_CLOSED = (OSError, http.client.HTTPException)

Json = dict[str, Any]


class ApiFailure(Exception):
    """The API server refused: `status` is HTTP's, the text is its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Cluster:
    """One API server with an etcd of its own; use as a context manager.

    Args:
        folder: for keys, data and logs.

    Raises:
        KubernetesUnavailable: there are no binaries.
        RuntimeError: one of them does not start (the text has the end of its log).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._binaries = {name: find(name) for name in ("etcd", "kube-apiserver")}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._write_keys()
        etcd_port, peer_port, self.port = free_ports(3)
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

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

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        content_type: str = "application/json",
    ) -> Any:
        """One request as the administrator, or with a bearer token; the decoded answer.

        Raises:
            ApiFailure: the answer is no success.
            OSError, http.client.HTTPException: there is no answer.
        """
        with contextlib.closing(self.connect(token)) as connection:
            return send(connection, method, path, body, token=token, content_type=content_type)

    def connect(self, token: str = "") -> http.client.HTTPSConnection:
        """A connection for `send`; many requests may share it."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if not token:
            context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=CALL_SECONDS, context=context
        )

    def apply(self, item: Json, *, dry_run: bool = False) -> Json:
        """Server-side apply of one object, which must name a kind that the API knows."""
        query = "fieldManager=test&force=true" + ("&dryRun=All" if dry_run else "")
        result: Json = self.call(
            "PATCH",
            f"{self.path(item)}?{query}",
            item,
            content_type="application/apply-patch+yaml",
        )
        return result

    def delete(self, item: Json) -> None:
        """Delete one object at once."""
        self.call("DELETE", f"{self.path(item)}?gracePeriodSeconds=0")

    def set_status(self, item: Json, status: Json) -> Json:
        """What a controller or the kubelet would do."""
        result: Json = self.call(
            "PATCH",
            f"{self.path(item)}/status",
            {"status": status},
            content_type="application/merge-patch+json",
        )
        return result

    def namespace(self, name: str, **labels: str) -> None:
        """Create a namespace; label names are written as with `**{"istio.io/...": "..."}`."""
        meta = {"name": name, "labels": labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})

    def token(
        self, namespace: str, account: str, *, audience: str = "", pod: Json | None = None
    ) -> str:
        """A token of a service account, bound to a pod where one is given (TokenRequest)."""
        spec: Json = {"expirationSeconds": 3600}
        if audience:
            spec["audiences"] = [audience]
        if pod is not None:
            meta = pod["metadata"]
            reference = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "uid": meta["uid"],
            }
            spec["boundObjectRef"] = reference
        answer = self.call(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        token: str = answer["status"]["token"]
        return token

    def account_folder(self, namespace: str, account: str) -> Path:
        """What a pod of a service account finds mounted."""
        path = self.folder / f"{namespace}-{account}"
        path.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.ca_file, path / "ca.crt")
        (path / "token").write_text(self.token(namespace, account))
        return path

    def path(self, item: Json) -> str:
        """The path of one object, found out by asking the API which kinds it knows."""
        version, kind = item["apiVersion"], item["kind"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        for resource in self.call("GET", base)["resources"]:
            if resource["kind"] == kind and "/" not in resource["name"]:
                meta = item["metadata"]
                inside = f"/namespaces/{meta['namespace']}" if resource["namespaced"] else ""
                return f"{base}{inside}/{resource['name']}/{meta['name']}"
        raise ApiFailure(404, f"{version} has no {kind}")

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

    def _write_keys(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        root_key, root = new_root("test cluster", now)
        issuer = Issuer(root_key, (), root)
        key = new_key()
        server = issuer.server(key.public_key(), ["127.0.0.1", "localhost"], 2 * _DAY, now)
        admin_key = new_key()
        admin = _client(issuer, admin_key.public_key(), "admin", "system:masters", now)
        accounts = new_key()
        public = accounts.public_key()
        files = {
            "ca.crt": to_pem(root).encode(),
            "server.crt": to_pem(server).encode(),
            "server.key": key_to_pem(key),
            "admin.crt": to_pem(admin).encode(),
            "admin.key": key_to_pem(admin_key),
            "accounts.key": key_to_pem(accounts),
            "accounts.pub": _public_pem(public),
        }
        for name, data in files.items():
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_bytes(data)

    def _kubeconfig(self) -> Json:
        def data(name: str) -> str:
            return base64.b64encode((self.folder / name).read_bytes()).decode()

        cluster = {"server": self.url, "certificate-authority-data": data("ca.crt")}
        user = {
            "client-certificate-data": data("admin.crt"),
            "client-key-data": data("admin.key"),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str = "",
    content_type: str = "application/json",
) -> Any:
    """One request; see `Cluster.call`."""
    headers = {"Content-Type": content_type, "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    text = response.read().decode()
    if not 200 <= response.status < 300:
        raise ApiFailure(response.status, text)
    is_json = response.headers.get_content_type() == "application/json"
    return json.loads(text) if is_json else text


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def _client(
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    user: str,
    group: str,
    now: datetime.datetime,
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, group),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 2 * _DAY)
        .add_extension(usage, critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256())


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
