"""The commands of the control plane."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from daemonset.control_plane.ca.generations import open_state
from daemonset.control_plane.ca.tokens import TokenVerifier, open_token_key
from daemonset.control_plane.command import add_parsers

POD = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.1}
"""
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  action: DENY
  rules:
  - to:
    - operation:
        methods: [GET]
"""


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


def test_validate_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    assert run("validate", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{tmp_path}: 2 objects, nothing is wrong\n")


def test_validate_counts_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", str(tmp_path)) == 0
    assert capsys.readouterr().err == f"{tmp_path}: no objects, nothing is wrong\n"
    (tmp_path / "a.yaml").write_text(POD + "---\n" + POLICY)
    (tmp_path / "b.yaml").write_text("kind: [")
    assert run("validate", str(tmp_path)) == 1
    assert capsys.readouterr().err == f"{tmp_path}: 3 objects, 2 errors\n"


def test_validate_names_file_and_line_of_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(POD.replace("10.0.0.1", "10.0.0.one"))
    (tmp_path / "b.yaml").write_text(POLICY.replace("rules", "rule"))
    assert run("validate", str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a.yaml:8: Pod shop/web: status.podIP: is not an IP address: '10.0.0.one'",
        "b.yaml:6: AuthorizationPolicy shop/p: spec.rule: is not a field that is known here "
        "(known: action, provider, rules, selector, targetRef, targetRefs)",
    ]


def test_validate_names_file_and_line_of_what_l4_cannot_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(POD + "---\n" + POLICY)
    assert run("validate", str(tmp_path)) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "a.yaml:18: error: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.methods: "
        "cannot be checked at L4: spec.rules[0] refuses everybody."
    )
    assert line.endswith("[UnsupportedValue]")


def test_warnings_fail_on_demand_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = POLICY.replace("spec:\n", "spec:\n  selector: {matchLabels: {app: x}}\n")
    policy = policy.replace("methods: [GET]", "ports: ['80']")
    (tmp_path / "a.yaml").write_text(POD + "---\n" + policy)
    assert run("validate", str(tmp_path)) == 0
    assert "warning: AuthorizationPolicy shop/p: spec.selector: no workload" in (
        capsys.readouterr().out
    )
    assert run("validate", "--strict", str(tmp_path)) == 1
    (tmp_path / "a.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n")
    assert run("validate", str(tmp_path)) == 0
    assert run("validate", "--strict", str(tmp_path)) == 1
    assert "a.yaml:1: warning: apps/v1 Deployment plays no part" in capsys.readouterr().out


def test_validate_says_when_there_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("validate", str(tmp_path / "missing")) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_a_token_for_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    assert run("token", "--state", str(state), "--node", "node-a") == 0
    token = capsys.readouterr().out.strip()
    caller = TokenVerifier(open_token_key(state).public_key).verify(token, time.time())
    assert str(caller) == "istio-system/ztunnel on node-a"
    state.chmod(0o755)
    assert run("token", "--state", str(state), "--node", "node-a") == 1
    assert "open to others" in capsys.readouterr().err


def test_a_token_that_nobody_knows_yet_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("has no key yet", ""):
        assert run("token", "--state", str(tmp_path / "state"), "--node", "node-a") == 0
        assert words in capsys.readouterr().err
    assert capsys.readouterr().err == ""


def test_rotating_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    earlier = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    assert run("rotate-root", "--state", str(state)) == 0
    assert "signs in 48 hours" in capsys.readouterr().out
    now = datetime.datetime.now(datetime.UTC)
    assert len(open_state(state / "ca", "cluster.local", now).roots) == 1
    assert earlier < now


def test_serving_from_the_command_line_until_a_signal(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.yaml").write_text(POD)
    program = textwrap.dedent(
        """
        import argparse, sys
        from daemonset.control_plane.command import add_parsers
        parser = argparse.ArgumentParser()
        add_parsers(parser.add_subparsers(required=True))
        arguments = parser.parse_args()
        sys.exit(arguments.run(arguments))
        """
    )
    arguments = ["control-plane", "--source", str(tmp_path / "source"), "--xds-port", "0"]
    arguments += ["--state", str(tmp_path / "state"), "--tls-port", "0", "--status-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        line = ""
        while " serves " not in line:
            line = process.stderr.readline()
            assert line, "ended before it served"
        port = int(line.rpartition(" ")[2])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            assert answer.read() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_what_keeps_it_from_serving_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    state = str(tmp_path / "state")
    assert run("control-plane", "--source", str(tmp_path), "--state", state) == 1
    assert "a.yaml:1: did not find expected node content" in capsys.readouterr().err
