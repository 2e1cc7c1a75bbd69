"""A test cluster's authority, and what it has signed, as files in one folder."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemonset.control_plane.ca.issuer import Issuer, key_to_pem, new_key, new_root, to_pem

_DAY = datetime.timedelta(days=1)


class Keys:
    """`ca.crt`, `ca.key`, and `NAME.crt` with `NAME.key` for every certificate asked for.

    Everything is good for two days: a cluster of a test lives for minutes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._now = datetime.datetime.now(datetime.UTC)
        key, root = new_root("test cluster", self._now)
        self._issuer = Issuer(key, (), root)
        self._write("ca.crt", to_pem(root).encode())
        self._write("ca.key", key_to_pem(key))

    def server(self, name: str, hosts: Sequence[str]) -> None:
        """For a server with these host names and addresses."""
        key = new_key()
        signed = self._issuer.server(key.public_key(), hosts, 2 * _DAY, self._now)
        self._keep(name, key, signed)

    def client(self, name: str, user: str, group: str = "") -> None:
        """For a user of the API."""
        key = new_key()
        self._keep(name, key, _client(self._issuer, key.public_key(), user, group, self._now))

    def accounts(self, name: str = "accounts") -> None:
        """A pair of keys for the tokens of service accounts: `NAME.key` and `NAME.pub`."""
        key = new_key()
        self._write(f"{name}.key", key_to_pem(key))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._write(f"{name}.pub", public)

    def kubeconfig(self, name: str, url: str) -> Path:
        """A kubeconfig for the client NAME; the administrator's is called `kubeconfig`."""

        def data(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        user = {
            "client-certificate-data": data(f"{name}.crt"),
            "client-key-data": data(f"{name}.key"),
        }
        cluster = {"server": url, "certificate-authority-data": data("ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        file = "kubeconfig" if name == "admin" else f"{name}.kubeconfig"
        self._write(file, json.dumps(config).encode())
        return self.folder / file

    def _keep(self, name: str, key: ec.EllipticCurvePrivateKey, signed: x509.Certificate) -> None:
        self._write(f"{name}.crt", to_pem(signed).encode())
        self._write(f"{name}.key", key_to_pem(key))

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).touch(mode=0o600)
        (self.folder / name).write_bytes(data)


def _client(
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    user: str,
    group: str,
    now: datetime.datetime,
) -> x509.Certificate:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 2 * _DAY)
        .add_extension(usage, critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256())
