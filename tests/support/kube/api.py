"""Calls to a Kubernetes API server, as the administrator or with a token."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
from pathlib import Path
from typing import Any

from tests.support.kube.keys import Keys

CALL_SECONDS = 60.0

Json = dict[str, Any]


class ApiFailure(Exception):
    """The API server refused: `status` is HTTP's, the text is its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """One API server.

    Args:
        keys: the cluster's; the administrator's certificate is made here.
        host, port: where it listens.
    """

    def __init__(self, keys: Keys, host: str, port: int) -> None:
        self.folder = keys.folder
        self.host = host
        self.port = port
        keys.client("admin", "admin", "system:masters")
        self.kubeconfig = keys.kubeconfig("admin", self.url)

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

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

    def has(self, path: str) -> bool:
        """Whether a GET succeeds now. Raises OSError, http.client.HTTPException."""
        with contextlib.suppress(ApiFailure):
            self.call("GET", path)
            return True
        return False

    def connect(self, token: str = "") -> http.client.HTTPSConnection:
        """A connection for `send`; many requests may share it."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if not token:
            context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return http.client.HTTPSConnection(
            self.host, self.port, timeout=CALL_SECONDS, context=context
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
