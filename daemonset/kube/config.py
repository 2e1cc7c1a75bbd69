"""Where the API server is and how we show who we are: in a pod, or from a kubeconfig."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeConfigError(Exception):
    """There is no API server to talk to, or no way to do it."""


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """One API server.

    Attributes:
        tls: None for plain HTTP (a proxy on this machine).
        prefix: a path before all paths.
        authorization: the value of that header, asked for with every request, "" for none.
        tls_name: what its certificate must be good for, where that is not ``host``.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str
    authorization: Callable[[], str]
    tls_name: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def find_config(context: str | None = None) -> KubeConfig:
    """In a pod its service account, else the kubeconfig that KUBECONFIG names or ~/.kube/config.

    Args:
        context: of the kubeconfig; naming one means that a kubeconfig is wanted.

    Raises:
        KubeConfigError: there is neither, or it cannot be used.
    """
    named = os.environ.get("KUBECONFIG")
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not named and context is None:
        return in_pod(os.environ, ACCOUNT_FOLDER)
    return from_kubeconfig(named, context)


def is_configured() -> bool:
    """Is there a cluster that ``find_config`` would look for without being told which?"""
    named = os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST")
    return bool(named) or (Path.home() / ".kube/config").exists()


def in_pod(environment: os._Environ[str] | dict[str, str], folder: Path) -> KubeConfig:
    """The API server as a pod sees it.

    Raises:
        KubeConfigError: the pod has no service account mounted.
    """
    token = folder / "token"
    try:
        tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        token.read_bytes()
    except OSError as error:
        raise KubeConfigError(f"{folder}: no service account: {error}") from None

    def authorization() -> str:
        # The kubelet replaces the file before the token in it ends; reading it costs less than
        # knowing when.
        return f"Bearer {token.read_text().strip()}"

    port = int(environment.get("KUBERNETES_SERVICE_PORT", "443"))
    host = environment["KUBERNETES_SERVICE_HOST"]
    return KubeConfig(host.strip("[]"), port, tls, "", authorization)


def from_kubeconfig(files: str | None, context: str | None) -> KubeConfig:
    """A kubeconfig with all its ways to show who one is, as the Kubernetes project reads them.

    Raises:
        KubeConfigError: it cannot be read.
    """
    # Costs 30 MiB and a third of a second, which a pod never pays.
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_kube_config

    configuration = Configuration()
    load: Callable[..., None] = load_kube_config
    try:
        load(files, context, client_configuration=configuration)
        url = urlsplit(configuration.host)
        tls = None
        if url.scheme == "https":
            tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
            if not configuration.verify_ssl:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
            if configuration.cert_file:
                tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (ConfigException, OSError, ValueError) as error:
        raise KubeConfigError(f"no kubeconfig that can be used: {error}") from None
    if not url.hostname:
        raise KubeConfigError(f"not the address of an API server: {configuration.host!r}")

    def authorization() -> str:
        # Also runs whatever renews the token.
        found = configuration.auth_settings().get("BearerToken")
        return str(found["value"]) if found else ""

    port = url.port or (443 if tls is not None else 80)
    tls_name = configuration.tls_server_name or ""
    return KubeConfig(url.hostname, port, tls, url.path.rstrip("/"), authorization, tls_name)
