"""Results on disk: one JSON object a line, so that runs can be put behind one another."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf.works import Figures
from ztunnel.native import form

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One work by one implementation in one round; `problem` is set where it could not be done."""

    implementation: str
    work: str
    round: int
    figures: Figures | None
    problem: str | None = None


def machine() -> dict[str, Any]:
    """What figures depend on, and no name of anybody's machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processors": os.cpu_count(),
        "model": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "form": form(),
    }


class Recorder:
    """Appends to a file, each line as soon as it is known: a run that is cut short is not lost."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._write({"machine": machine(), "settings": settings})

    def add(self, result: Result) -> None:
        self._write(asdict(result))

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read(lines: Iterable[str]) -> tuple[dict[str, Any], list[Result]]:
    """What a Recorder wrote: its settings, and the results in order."""
    head: dict[str, Any] = {}
    results = []
    for line in lines:
        found = json.loads(line)
        if "machine" in found:
            head = found
            continue
        figures = found.pop("figures")
        results.append(Result(figures=None if figures is None else Figures(**figures), **found))
    return head, results
