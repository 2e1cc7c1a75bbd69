"""Tables in Markdown: medians with their ranges, and ratios to Envoy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from perf.implementations import Implementation
from perf.plot import Axis, Line, svg
from perf.record import Result
from perf.works import GROWTH, WORKS, Figures, Kind, Work

PEER = "envoy-"
DIRECT, DIRECT_HERE = "direct", "node-direct"


def report(
    head: dict[str, Any],
    implementations: Sequence[Implementation],
    works: Sequence[Work],
    results: Iterable[Result],
) -> str:
    """The whole report. What an implementation could not do is named below the tables."""
    done: dict[tuple[str, str], list[Figures]] = {}
    problems = []
    for result in results:
        if result.figures is None:
            problems.append(f"{result.implementation}, {result.work}: {result.problem}")
            continue
        done.setdefault((result.implementation, result.work), []).append(result.figures)
        if result.figures.failures:
            problems.append(
                f"{result.implementation}, {result.work}: {result.figures.failures} failures"
            )
    machine, settings = head["machine"], head["settings"]
    sections = [
        f"{machine['processors']} processors ({machine['model']}), Linux {machine['kernel']}, "
        f"Python {machine['python']} ({machine['form']}); "
        f"{settings['rounds']} alternating rounds of {settings['seconds']:g} s. Median (lowest to "
        "highest); p50/p99 in µs; *CPU of all "
        "proxies together* (on one node: of the whole machine but for load and application), in "
        "seconds per GB of a stream and in µs per message.",
        _table(implementations, works, lambda i, w: _cell(w, done.get((i.name, w.name), []))),
    ]
    tails = [work for work in works if any(_latency(done, i, work) for i in implementations)]
    if tails:
        sections.append("Latency, µs: p50 / p90 / p99 / p99.9")
        sections.append(
            _table(
                implementations,
                tails,
                lambda i, w: (
                    " / ".join(f"{value:,.0f}" for _, value in _latency(done, i, w)) or "–"
                ),
            )
        )
    compared = [i for i in implementations if _peer(i, implementations) is not None]
    if compared:
        sections.append("Ratios to Envoy with as many workers: rate, *CPU* (less is better)")
        sections.append(
            _table(
                compared,
                works,
                lambda i, w: _ratio(
                    done.get((i.name, w.name), []),
                    done.get((str(_peer(i, implementations)), w.name), []),
                ),
            )
        )
    measure = next((i for i in implementations if i.name in (DIRECT, DIRECT_HERE)), None)
    others = [i for i in implementations if i is not measure]
    if measure is not None and others:
        sections.append("Ratios to direct: rate, p50 (less is better)")
        sections.append(
            _table(
                others,
                [work for work in works if work.kind is not Kind.IDLE],
                lambda i, w: _to_direct(
                    done.get((i.name, w.name), []), done.get((measure.name, w.name), [])
                ),
            )
        )
    if problems:
        sections.append("Not as it should be:\n\n" + "\n".join(f"- {p}" for p in problems))
    return "\n\n".join(sections) + "\n"


def plots(implementations: Sequence[Implementation], results: Iterable[Result]) -> dict[str, str]:
    """Name -> SVG, of what was measured: growth with connections, and latency."""
    done: dict[tuple[str, str], list[Figures]] = {}
    for result in results:
        if result.figures is not None:
            done.setdefault((result.implementation, result.work), []).append(result.figures)
    growing = [
        work
        for count in GROWTH
        for work in WORKS
        if work.mode == "pingpong" and work.size is None and work.connections == count
    ]
    connections = Axis("connections", logarithmic=True)
    found = {}
    for name, title, unit, value in (
        ("rate", "Messages of 1 B there and back", "/s", _rate),
        ("cpu", "CPU of all proxies together", "µs per message", _cpu),
        ("p50", "Latency, p50", "µs", _p50),
        ("p99", "Latency, p99", "µs", _p99),
    ):
        lines = []
        for one in implementations:
            points = [(w.connections, value(done.get((one.name, w.name), []))) for w in growing]
            lines.append(Line(one.title, [(x, y) for x, y in points if y is not None]))
        if sum(len(line.points) for line in lines):
            found[f"growth-{name}"] = svg(title, connections, Axis(unit, logarithmic=True), lines)
    for work in growing:
        lines = [Line(one.title, _latency(done, one, work)) for one in implementations]
        if work.connections in (1, 16, 64) and any(line.points for line in lines):
            found[f"latency-{work.connections}"] = svg(
                f"Latency with {work.connections} connections",
                Axis("slower than this are one in …", logarithmic=True),
                Axis("µs", logarithmic=True),
                lines,
            )
    return found


def _latency(
    done: dict[tuple[str, str], list[Figures]], one: Implementation, work: Work
) -> list[tuple[float, float]]:
    """(one in so many is slower, microseconds): medians of p50, p90, p99, p99.9."""
    runs = done.get((one.name, work.name), [])
    found = []
    for part, values in (
        (2, [run.p50 for run in runs]),
        (10, [run.p90 for run in runs]),
        (100, [run.p99 for run in runs]),
        (1000, [run.p999 for run in runs]),
    ):
        known = [value for value in values if value is not None]
        if known:
            found.append((float(part), statistics.median(known)))
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _rate(runs: Sequence[Figures]) -> float | None:
    return _median(run.rate for run in runs)


def _cpu(runs: Sequence[Figures]) -> float | None:
    return _median(run.cpu for run in runs)


def _p50(runs: Sequence[Figures]) -> float | None:
    return _median(run.p50 for run in runs)


def _p99(runs: Sequence[Figures]) -> float | None:
    return _median(run.p99 for run in runs)


def _peer(one: Implementation, everyone: Iterable[Implementation]) -> str | None:
    """The Envoy pair that has as many workers, by the number at the end of its name."""
    node = "node-" if one.name.startswith("node-") else ""
    wanted = node + PEER + one.name.rpartition("-")[2]
    if one.name == wanted:
        return None
    return next((other.name for other in everyone if other.name == wanted), None)


def _table(
    columns: Sequence[Implementation],
    works: Sequence[Work],
    cell: Callable[[Implementation, Work], str],
) -> str:
    lines = [
        "| work | " + " | ".join(column.title for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for work in works:
        row = " | ".join(cell(column, work) for column in columns)
        lines.append(f"| {work.title}, {work.kind.value} | {row} |")
    return "\n".join(lines)


def _cell(work: Work, runs: list[Figures]) -> str:
    if not runs:
        return "–"
    rates = [run.rate for run in runs]
    parts = [f"**{_number(statistics.median(rates))}**"]
    if len(rates) > 1:
        parts[0] += f" ({_number(min(rates))} to {_number(max(rates))})"
    p50 = [run.p50 for run in runs if run.p50 is not None]
    p99 = [run.p99 for run in runs if run.p99 is not None]
    if p50 and p99:
        parts.append(f"{statistics.median(p50):,.0f}/{statistics.median(p99):,.0f}")
    memory = [run.memory for run in runs if run.memory is not None]
    if memory:
        parts.append(f"{statistics.median(memory):,.0f} MiB in all")
    cpu = [run.cpu for run in runs if run.cpu is not None]
    if cpu:
        precise = 2 if work.kind is Kind.STREAM else 1
        parts.append(f"*{statistics.median(cpu):,.{precise}f}*")
    return " · ".join(parts)


def _ratio(ours: list[Figures], theirs: list[Figures]) -> str:
    if not ours or not theirs:
        return "–"
    rate = statistics.median(run.rate for run in theirs)
    parts = [f"{statistics.median(run.rate for run in ours) / rate:.2f}" if rate else "–"]
    our_cpu = [run.cpu for run in ours if run.cpu is not None]
    their_cpu = [run.cpu for run in theirs if run.cpu]
    if our_cpu and their_cpu:
        parts.append(f"*{statistics.median(our_cpu) / statistics.median(their_cpu):.2f}*")
    return " · ".join(parts)


def _to_direct(ours: list[Figures], direct: list[Figures]) -> str:
    rate, best = _rate(ours), _rate(direct)
    if rate is None or not best:
        return "–"
    parts = [f"{rate / best:.2f}"]
    ours_p50, best_p50 = _p50(ours), _p50(direct)
    if ours_p50 is not None and best_p50:
        parts.append(f"p50 {ours_p50 / best_p50:.2f}")
    return " · ".join(parts)


def _number(value: float) -> str:
    """Three significant digits, as far as a reader cares."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
