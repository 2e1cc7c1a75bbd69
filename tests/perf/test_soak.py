"""The short form of the soak: everything at once, nothing goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.soak import MIX


@pytest.mark.root
def test_a_short_soak_ends_without_failures(tmp_path: Path) -> None:
    options = ["--only", "ztunnel-1", "--minutes", "0.04", "--slice", "1"]
    assert main(["soak", *options, "--output", str(tmp_path)]) == 0
    [lines] = tmp_path.glob("*.jsonl")
    slices = [json.loads(line) for line in lines.read_text().splitlines()][1:]
    assert slices
    for one in slices:
        assert one["failures"] == 0
        assert set(one["rates"]) == {work.name for work in MIX}
        assert all(rate > 0 for rate in one["rates"].values())
        assert one["memory_mib"] > 10
        assert one["descriptors"] > 10
    assert "**0 failures**" in lines.with_suffix(".md").read_text()
