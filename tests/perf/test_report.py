from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.bench import count_whole_machine
from perf.implementations import ALL, Direct, EnvoyPair
from perf.record import Recorder, Result, read
from perf.report import report
from perf.same_node import SAME_NODE
from perf.works import WORKS, Figures, Kind, Work

BY_NAME = {work.name: work for work in WORKS}


def printed(**others: object) -> dict[str, object]:
    """What tcpload prints, as far as it is read."""
    return {
        "seconds": 2.0,
        "failures": {"total": 0},
        "processes": [{"pid": 1, "pss_from_kib": 1000, "pss_to_kib": 11000}],
        "processes_cpu_s": 3.0,
        **others,
    }


def test_a_stream_is_read_in_bits_and_seconds_per_gigabyte() -> None:
    figures = BY_NAME["up-1"].figures(printed(bytes=3_000_000_000))
    assert figures == Figures(rate=12.0, cpu=1.0, p50=None, p99=None, failures=0)


def test_messages_are_read_by_second_and_microseconds_each() -> None:
    latency = {"p50": 10.0, "p99": 20.0}
    report = printed(operations=100_000, latency_us=latency, failures={"total": 2})
    assert BY_NAME["ping-16"].figures(report) == Figures(50_000.0, 30.0, 10.0, 20.0, 2)


def test_what_another_load_costs_is_not_counted_for_messages_beside_it() -> None:
    report = printed(operations=100_000)
    assert BY_NAME["ping-64"].figures(report).cpu == 30.0
    assert BY_NAME["ping-64-bulk"].figures(report).cpu is None
    assert BY_NAME["ping-64-bulk"].figures(report).rate == 50_000.0


def test_nothing_done_costs_nothing_known() -> None:
    assert BY_NAME["ping-16"].figures(printed(operations=0)).cpu is None
    assert BY_NAME["up-1"].figures(printed(bytes=0)).cpu is None
    assert BY_NAME["up-1"].figures(printed(bytes=10**9, processes=[])).cpu is None


def test_idle_memory_is_that_of_the_second_half() -> None:
    assert BY_NAME["idle"].figures(printed()).rate == 10.0


def test_names_are_told_apart() -> None:
    assert len({work.name for work in WORKS}) == len(WORKS)
    everything = (*ALL, *SAME_NODE)
    assert len({one.name for one in everything}) == len(everything)


def test_on_one_node_the_kernels_threads_count_and_the_load_does_not() -> None:
    report = printed(own_cpu_s=0.5, machine_cpu_s=3.0)
    report["processes"] = [{"pid": 1, "cpu_s": 0.25}, {"pid": 2, "cpu_s": 1.0}]
    count_whole_machine(report, 2)
    assert report["processes_cpu_s"] == 1.5
    assert report["processes"] == [{"pid": 1, "cpu_s": 0.25}]


def test_implementations_on_one_node_are_compared_there() -> None:
    head = {
        "machine": {"processors": 2, "model": "x", "kernel": "6", "python": "3", "form": "plain"},
        "settings": {"rounds": 1, "seconds": 1},
    }
    done = [
        Result("node-direct", "ping-1", 1, Figures(200.0, None, 10.0, 20.0, 0)),
        Result("node-envoy-1", "ping-1", 1, Figures(100.0, 8.0, 30.0, 40.0, 0)),
        Result("node-ztunnel-1", "ping-1", 1, Figures(190.0, 2.0, 11.0, 22.0, 0)),
    ]
    text = report(head, SAME_NODE[:3], [BY_NAME["ping-1"]], done)
    assert "1.90 · *0.25*" in text  # to Envoy
    assert "0.95 · p50 1.10" in text  # to direct


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "new" / "x.jsonl", {"rounds": 1})
    written = [
        Result("direct", "up-1", 1, Figures(1.0, None, None, None, 0)),
        Result("envoy-1", "up-1", 1, None, "it broke"),
    ]
    for result in written:
        recorder.add(result)
    head, results = read(recorder.path.read_text().splitlines())
    assert results == written
    assert head["settings"] == {"rounds": 1}
    assert json.dumps(head["machine"])


class Ours(Direct):
    """Something that is to be compared."""


def test_the_report_has_medians_ranges_ratios_and_what_went_wrong() -> None:
    head = {
        "machine": {"processors": 2, "model": "x", "kernel": "6", "python": "3", "form": "plain"},
        "settings": {"rounds": 3, "seconds": 1.0},
    }
    ours = Ours("ztunnel-1", "ours")
    work = Work("w", "some work", Kind.MESSAGES, "pingpong", 1)
    results = [
        Result(name, "w", number, Figures(rate, cpu, 10.0, 20.0, 0))
        for name, rates, cpu in (("envoy-1", (1000, 3000, 2000), 10.0), ("ztunnel-1", (500,), 5.0))
        for number, rate in enumerate(rates)
    ]
    results.append(Result("ztunnel-1", "w", 2, None, "it broke"))
    text = report(head, [Direct(), EnvoyPair(1), ours], [work], results)
    assert "| some work, /s | – | **2,000** (1,000 to 3,000) · 10/20 · *10.0* |" in text
    assert "| some work, /s | 0.25 · *0.50* |" in text
    assert "- ztunnel-1, w: it broke" in text


@pytest.mark.parametrize("kind", list(Kind))
def test_a_report_without_any_result(kind: Kind) -> None:
    head = {
        "machine": {"processors": 2, "model": "x", "kernel": "6", "python": "3", "form": "plain"},
        "settings": {"rounds": 1, "seconds": 1.0},
    }
    work = Work("w", "some work", kind, "pingpong", 1)
    text = report(head, [Direct(), EnvoyPair(1), EnvoyPair(2)], [work], [])
    assert "| – | – | – |" in text
