"""One tiny round from end to end: the harness gives results. What they are is no test."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perf.__main__ import main, measure_round, parse
from perf.build import Tools, build
from perf.implementations import ALL, Direct, Running, complaints
from perf.processes import with_descendants
from perf.record import Recorder, read
from perf.works import WORKS


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


def test_what_went_wrong_is_told_with_the_complaints_of_what_was_measured(tmp_path: Path) -> None:
    log = tmp_path / "ztunnel.log"
    lines = ["now\tinfo\tztunnel.tls\tall is well", "now\terror\taccess\tTLS handshake: no answer"]
    log.write_text("".join(f"{line}\n" for line in (*lines, *lines)))
    assert complaints(log) == [lines[1], lines[1]]

    class Broken(Direct):
        """Nobody reaches its server."""

        @contextmanager
        def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
            with super().running(tools, folder) as running:
                running.bench.server_ip = "127.0.0.2"  # where nobody listens
                yield dataclasses.replace(running, complaints=lambda: complaints(log))

    results = tmp_path / "results.jsonl"
    works = [work for work in WORKS if work.name == "connect-1"]
    measure_round(Broken(), works, build(), 1, 0.2, 0.1, Recorder(results, {}))
    _, [result] = read(results.read_text().splitlines())
    assert result.figures is None
    assert result.problem is not None
    assert result.problem.endswith(f"{lines[1]}\n{lines[1]}")
