"""`python -m perf soak`: mixed traffic for a long time; what grows, and what goes wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from perf.bench import LoadError
from perf.build import BuildError, build
from perf.implementations import ALL, Running
from perf.plot import Axis, Line, svg
from perf.processes import proportional_kib, with_descendants
from perf.record import RESULTS, machine
from perf.same_node import SAME_NODE
from perf.works import SINK_PORT, SOURCE_PORT, Kind, Work

MIX = (
    Work("ping", "1 B there and back, c=16", Kind.MESSAGES, "pingpong", 16),
    Work("ping-1k", "1 KiB there and back, c=8", Kind.MESSAGES, "pingpong", 8, size=1024),
    Work("connect", "new connection each, c=8", Kind.MESSAGES, "connect", 8),
    Work("half-close", "new connection, half-closed", Kind.MESSAGES, "halfclose", 4, size=9000),
    Work("up", "upload, 2 streams", Kind.STREAM, "up", 2, SINK_PORT),
    Work("down", "download, 2 streams", Kind.STREAM, "down", 2, SOURCE_PORT),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of a soak.

    Attributes:
        minutes: since the beginning, at the end of this slice.
        rates: of each work of the mix, in its unit.
        failures: messages and connections that went wrong, and works that could not be done.
        memory_mib: proportional set size of all processes of the implementation, afterwards.
        descriptors: that they have open, afterwards.
    """

    minutes: float
    rates: dict[str, float]
    failures: int
    memory_mib: float
    descriptors: int


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m perf soak", description=__doc__)
    everything = (*ALL, *SAME_NODE)
    names = [one.name for one in everything]
    parser.add_argument("--only", choices=names, default="ztunnel-2", help="what carries it")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (30)")
    parser.add_argument("--slice", type=float, default=30.0, help="seconds between looks (30)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    implementation = next(one for one in everything if one.name == options.only)
    reason = implementation.missing()
    if reason is not None:
        sys.exit(f"{implementation.name}: {reason}")
    try:
        tools = build()
    except BuildError as error:
        sys.exit(str(error))
    path = options.output / f"soak-{time.strftime('%Y-%m-%d-%H%M%S')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    slices: list[Slice] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        implementation.running(tools, Path(folder)) as running,
        running.bench.far_end(),
        open(path, "w", encoding="utf-8") as file,
    ):
        file.write(json.dumps({"machine": machine(), "implementation": options.only}) + "\n")
        started = time.monotonic()
        while time.monotonic() - started < options.minutes * 60:
            slices.append(_slice(running, options.slice, started))
            line = json.dumps(asdict(slices[-1]))
            file.write(line + "\n")
            file.flush()
            print(line, flush=True)
    text = report(implementation.title, slices)
    path.with_suffix(".md").write_text(text)
    memory = Line("MiB", [(one.minutes, one.memory_mib) for one in slices])
    descriptors = Line("descriptors", [(one.minutes, one.descriptors) for one in slices])
    plot = svg("What is held", Axis("minutes"), Axis("MiB, descriptors"), [memory, descriptors])
    path.with_suffix(".svg").write_text(plot)
    print(f"\n{text}\n{path}")
    return 1 if any(one.failures for one in slices) else 0


def _slice(running: Running, seconds: float, started: float) -> Slice:
    """All works of the mix at once."""
    rates = {}
    failures = 0
    with ThreadPoolExecutor(len(MIX)) as pool:
        runs = [pool.submit(running.bench.run, work, [], seconds, 0.1) for work in MIX]
        for work, run in zip(MIX, runs, strict=True):
            try:
                figures = work.figures(run.result())
            except LoadError as error:
                print(error, file=sys.stderr)
                failures += 1
                continue
            rates[work.name] = figures.rate
            failures += figures.failures
    pids = with_descendants(running.pids) if running.pids else []
    return Slice(
        (time.monotonic() - started) / 60,
        rates,
        failures,
        sum(proportional_kib(pid) for pid in pids) / 1024,
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
    )


def report(title: str, slices: Sequence[Slice]) -> str:
    """The table in Markdown: the first, the middle and the last slice, and all failures."""
    rows = [
        f"{title}: {slices[-1].minutes:.1f} minutes of mixed traffic, "
        f"**{sum(one.failures for one in slices)} failures**.",
        "",
        "| minutes | memory, MiB | descriptors | " + " | ".join(w.title for w in MIX) + " |",
        "|---|---|---|" + "---|" * len(MIX),
    ]
    chosen = {0, len(slices) // 2, len(slices) - 1}
    for number in sorted(chosen):
        one = slices[number]
        rates = " | ".join(f"{one.rates.get(w.name, 0):,.4g} {w.kind.value}" for w in MIX)
        rows.append(f"| {one.minutes:.1f} | {one.memory_mib:.1f} | {one.descriptors} | {rates} |")
    return "\n".join(rows) + "\n"
