"""Tables in Markdown: medians with their ranges, and ratios to Envoy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from perf.implementations import Implementation
from perf.record import Result
from perf.works import Figures, Kind, Work

PEER = "envoy-"


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
        f"Python {machine['python']}; {settings['rounds']} alternating rounds of "
        f"{settings['seconds']:g} s. Median (lowest to highest); p50/p99 in µs; *CPU of all "
        "proxies together*, in seconds per GB of a stream and in µs per message.",
        _table(implementations, works, lambda i, w: _cell(w, done.get((i.name, w.name), []))),
    ]
    compared = [i for i in implementations if _peer(i, implementations) is not None]
    if compared:
        sections.append("Ratios to the Envoy pair of as many workers: rate, *CPU* (less is better)")
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
    if problems:
        sections.append("Not as it should be:\n\n" + "\n".join(f"- {p}" for p in problems))
    return "\n\n".join(sections) + "\n"


def _peer(one: Implementation, everyone: Iterable[Implementation]) -> str | None:
    """The Envoy pair that has as many workers, by the number at the end of its name."""
    wanted = PEER + one.name.rpartition("-")[2]
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


def _number(value: float) -> str:
    """Three significant digits, as far as a reader cares."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
