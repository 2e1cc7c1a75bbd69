"""Where the API server is, and who we are there (real kubeconfigs: tests/kube)."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from daemonset.control_plane.ca.issuer import new_root, to_pem
from daemonset.kube.config import KubeConfigError, from_kubeconfig, in_pod

SERVICE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    _, root = new_root("cluster", datetime.datetime.now(datetime.UTC))
    (tmp_path / "ca.crt").write_text(to_pem(root))
    (tmp_path / "token").write_text("first\n")
    return tmp_path


def test_a_pod_reads_its_token_again_when_it_is_replaced(account: Path) -> None:
    config = in_pod(SERVICE, account)
    assert (config.host, config.port, config.prefix) == ("10.96.0.1", 6443, "")
    assert config.tls is not None
    assert config.tls.check_hostname
    assert config.authorization() == "Bearer first"
    (account / "token").write_text("second")
    assert config.authorization() == "Bearer second"


def test_an_ipv6_service(account: Path) -> None:
    assert in_pod({"KUBERNETES_SERVICE_HOST": "[fd00::1]"}, account).host == "fd00::1"
    assert in_pod({"KUBERNETES_SERVICE_HOST": "fd00::1"}, account).port == 443


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
def test_a_pod_without_a_service_account(account: Path, missing: str) -> None:
    (account / missing).unlink()
    with pytest.raises(KubeConfigError, match="no service account"):
        in_pod(SERVICE, account)


def kubeconfig(path: Path, cluster: dict[str, object], user: dict[str, object]) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "one",
    }
    path.write_text(json.dumps(config))
    return str(path)


def test_a_kubeconfig_with_a_token_and_a_path(tmp_path: Path) -> None:
    cluster: dict[str, object] = {
        "server": "http://127.0.0.1:8001/k8s/clusters/c-1/",
        "tls-server-name": "kubernetes",
    }
    config = from_kubeconfig(kubeconfig(tmp_path / "config", cluster, {"token": "secret"}), None)
    assert (config.host, config.port) == ("127.0.0.1", 8001)
    assert config.prefix == "/k8s/clusters/c-1"
    assert config.tls is None
    assert config.tls_name == "kubernetes"
    assert config.authorization() == "Bearer secret"


def test_a_kubeconfig_that_is_not_there_or_has_no_such_context(tmp_path: Path) -> None:
    with pytest.raises(KubeConfigError, match="no kubeconfig that can be used"):
        from_kubeconfig(str(tmp_path / "missing"), None)
    path = kubeconfig(tmp_path / "config", {"server": "https://example.com"}, {})
    with pytest.raises(KubeConfigError, match="no kubeconfig that can be used"):
        from_kubeconfig(path, "no-such-context")


def test_in_a_pod_the_large_client_library_is_never_imported() -> None:
    """It costs 30 MiB, and a third of a second for every command."""
    code = (
        "import sys, daemonset.control_plane.kubernetes_command, daemonset.cli;"
        "daemonset.cli.parser('control-plane');"
        "sys.exit('kubernetes' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
