"""The authority's key in a Secret, as Istio lays it out, so that either can follow the other.

``cacerts`` is the user's own and wins; ``istio-ca-secret`` is made where there is neither. It is
only ever created: of several replicas that start at once one is first, and the others read what
it made. Where root certificates have been handed out and no Secret is there, somebody has lost a
key: a new root would cut off every workload that trusts the old one, so nothing is made then.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import logging

from daemonset.control_plane.ca.authority import Authority, build
from daemonset.control_plane.ca.issuer import (
    AuthorityError,
    certificates_from_pem,
    key_to_pem,
    new_root,
    to_pem,
)
from daemonset.kube.client import ApiError, Json, KubeClient

GIVEN = "cacerts"
OWN = "istio-ca-secret"
ROOT_MAP = "istio-ca-root-cert"

_log = logging.getLogger("daemonset.control_plane.ca")


class SecretAuthority:
    """Reads the authority of a namespace, and makes it where nobody has."""

    def __init__(self, client: KubeClient, namespace: str, trust_domain: str) -> None:
        self._client = client
        self._namespace = namespace
        self._trust_domain = trust_domain
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def read(self) -> Authority | None:
        """The authority as it is, or None where there is no Secret.

        Raises:
            AuthorityError: a Secret does not hold an authority.
            ApiError, ApiUnavailableError: it cannot be read.
        """
        for name in (GIVEN, OWN):
            try:
                secret = await self._client.call("GET", f"{self._path}/{name}")
            except ApiError as error:
                if error.status == 404:
                    continue
                raise
            return read_secret(secret, datetime.datetime.now(datetime.UTC))
        return None

    async def open(self) -> Authority:
        """The authority; made if there has never been one.

        Raises:
            AuthorityError: see ``read``, or the key of a mesh that is in use is missing.
            ApiError, ApiUnavailableError: it can be neither read nor made.
        """
        found = await self.read()
        if found is not None:
            return found
        if await self._roots_were_handed_out():
            # Another replica may have made the Secret, and handed the root out, just now.
            found = await self.read()
            if found is not None:
                return found
            raise AuthorityError(
                f"Secret {self._namespace}/{OWN} (or {GIVEN}) is missing, and ConfigMaps "
                f"{ROOT_MAP} show that workloads trust its root: restore the Secret from a backup, "
                f"or, to start anew with all workloads cut off meanwhile, delete those ConfigMaps"
            )
        try:
            await self._client.call("POST", self._path, body=self._new())
            _log.info("made a root, kept in Secret %s/%s", self._namespace, OWN)
        except ApiError as error:
            if error.status != 409:
                raise
            _log.info("another replica has made the root: reading it")
        found = await self.read()
        if found is None:
            raise AuthorityError(f"Secret {self._namespace}/{OWN} vanished while it was being made")
        return found

    async def _roots_were_handed_out(self) -> bool:
        query = {"fieldSelector": f"metadata.name={ROOT_MAP}", "limit": "1"}
        found = await self._client.call("GET", "/api/v1/configmaps", query)
        return bool(found.get("items"))

    def _new(self) -> Json:
        now = datetime.datetime.now(datetime.UTC)
        key, root = new_root(f"{self._trust_domain} root {now:%Y%m%d%H%M%S}", now)
        pem = to_pem(root).encode()
        data = {
            "ca-cert.pem": pem,
            "ca-key.pem": key_to_pem(key),
            "cert-chain.pem": b"",
            "root-cert.pem": pem,
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": OWN, "namespace": self._namespace},
            "type": "istio.io/ca-root",
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        }


def read_secret(secret: Json, now: datetime.datetime) -> Authority:
    """The authority in a Secret of Istio's layout, or of type kubernetes.io/tls with ca.crt.

    Raises:
        AuthorityError: naming the Secret and the key in it that does not fit.
    """
    meta = secret["metadata"]
    place = f"Secret {meta.get('namespace')}/{meta.get('name')}"
    data = {name: _decode(text, f"{place}: {name}") for name, text in _entries(secret)}
    names = ("ca-key.pem", "ca-cert.pem", "root-cert.pem", "cert-chain.pem")
    if "ca-key.pem" not in data:
        names = ("tls.key", "tls.crt", "ca.crt", "")
    key, own, roots, chain = (data.get(name, b"") for name in names)
    if not key or not own:
        raise AuthorityError(f"{place}: ca-key.pem and ca-cert.pem are needed")
    certificates = certificates_from_pem(own, f"{place}: certificate")
    if chain.strip():
        found = certificates_from_pem(chain, f"{place}: cert-chain.pem")
        same = bool(found) and found[0] == certificates[0]
        certificates = found if same else [certificates[0], *found]
    # A root that signs by itself stands alone, as Istio writes it.
    trusted = certificates_from_pem(roots, f"{place}: roots") if roots else certificates[-1:]
    return build(key, certificates, trusted, place, now)


def _entries(secret: Json) -> list[tuple[str, str]]:
    return [(str(name), str(text)) for name, text in (secret.get("data") or {}).items()]


def _decode(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise AuthorityError(f"{place}: not base64") from None
