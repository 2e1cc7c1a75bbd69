"""One tiny round from end to end: the harness gives results. What they are is no test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from perf.__main__ import main, parse
from perf.build import build
from perf.implementations import ALL
from perf.processes import with_descendants
from perf.record import read


@pytest.mark.root
def test_a_tiny_round_gives_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "direct", "--rounds", "1", "--seconds", "0.2", "--warm-up", "0.1"]
    arguments += ["--work", "up-1", "--work", "ping-16", "--work", "connect-1"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    [results] = tmp_path.glob("*.jsonl")
    _, found = read(results.read_text().splitlines())
    assert [result.work for result in found] == ["up-1", "ping-16", "connect-1"]
    for result in found:
        assert result.figures is not None
        assert result.figures.rate > 0
        assert result.figures.failures == 0
    table = results.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out


def test_quick_is_one_short_round() -> None:
    options = parse(["--quick"])
    assert (options.rounds, options.seconds) == (1, 1.0)


def test_a_process_is_a_descendant_of_its_parent() -> None:
    assert os.getpid() in with_descendants([os.getppid()])


@pytest.mark.root
def test_another_ztunnel_is_measured_where_its_binary_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [istio] = [one for one in ALL if one.name == "istio-ztunnel-1"]
    monkeypatch.delenv("ZTUNNEL_BIN", raising=False)
    assert istio.missing() == "ZTUNNEL_BIN does not name a binary of it"
    binary = tmp_path / "ztunnel"
    mark = tmp_path / "started"
    binary.write_text(f"#!/bin/sh\ntouch {mark}\nexec {sys.executable} -m ztunnel\n")
    monkeypatch.setenv("ZTUNNEL_BIN", str(binary))
    assert istio.missing() == f"{binary} cannot be executed"
    binary.chmod(0o755)
    assert istio.missing() is None
    (tmp_path / "mesh").mkdir()
    with istio.running(build(), tmp_path / "mesh") as running:
        assert mark.exists()
        assert len(running.pids) == 2
