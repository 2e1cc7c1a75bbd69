"""The benchmarks of scale give figures, tables and plots. What the figures are is no test."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from perf.__main__ import main
from perf.plot import Axis, Line, svg
from perf.scale_node import load
from perf.works import WORKS

_SVG = "{http://www.w3.org/2000/svg}"


def test_decisions_are_measured_and_shown(tmp_path: Path) -> None:
    assert main(["scale", "--most", "100", "--no-processes", "--output", str(tmp_path)]) == 0
    [lines] = tmp_path.glob("*.jsonl")
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    sizes = {one["policies"]["size"] for one in found if "policies" in one}
    assert sizes == {10, 100}
    assert all(one["workloads"]["median"] > 0 for one in found if "workloads" in one)
    table = lines.with_suffix(".md").read_text()
    assert "| check, allowed | **" in table
    assert "decision for a service's address" in table
    assert {one["control plane"]["pods"] for one in found if "control plane" in one} == {100}
    assert "| a pod that becomes ready or unready | **" in table
    assert len(list(tmp_path.glob("*.svg"))) == 2


@pytest.mark.root
def test_a_whole_ztunnel_takes_a_mesh_and_its_changes() -> None:
    found = load(500, workers=1)
    assert found.seconds > 0
    assert 0 < found.change_ms <= found.change_most_ms
    assert found.total_mib > found.worker_mib + found.control_mib > 0


def test_a_plot_has_a_line_for_each_name_where_its_points_belong() -> None:
    text = svg(
        "a & b",
        Axis("x", logarithmic=True),
        Axis("y"),
        [Line("one", [(1, 0), (10, 5), (100, 10)]), Line("none", [(0, 3)])],
    )
    root = ElementTree.fromstring(text)
    texts = [one.text for one in root.iter(f"{_SVG}text")]
    assert "a & b" in texts
    assert "one" in texts
    assert "none" not in texts  # a logarithmic axis has no place for 0
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{_SVG}circle")]
    assert len(circles) == 3
    steps = [b[0] - a[0] for a, b in pairwise(circles)]
    assert steps[0] == pytest.approx(steps[1], abs=0.2)
    heights = [y for _, y in circles]
    assert heights == sorted(heights, reverse=True)


def test_names_of_works_are_unique() -> None:
    names = [work.name for work in WORKS]
    assert len(names) == len(set(names))
