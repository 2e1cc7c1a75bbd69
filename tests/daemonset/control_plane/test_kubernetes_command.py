"""What keeps a control plane from serving a cluster is said (served ones: tests/kube)."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from daemonset.cli import main


def run(*words: str) -> int:
    return main(["control-plane", "--source", "kubernetes", *words])


def test_no_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert run() == 1
    assert "no kubeconfig that can be used" in capsys.readouterr().err


def test_an_authority_from_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--ca", "/etc/ca") == 1
    assert "put it into Secret cacerts" in capsys.readouterr().err


def test_an_api_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # bound and not listened on: nobody else gets it meanwhile
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(path))
        assert run("--context", "one") == 1
    assert f"cannot connect to 127.0.0.1:{port}" in capsys.readouterr().err
