"""`python -m perf scale`: what a growing mesh costs, as JSON lines, a table and plots."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf.plot import Axis, Line, svg
from perf.record import RESULTS, machine
from perf.scale import POLICIES, WORKLOADS, Cost, lookups, policies
from perf.scale_node import SIZES, Loaded, Node, ScaleError, load, node
from perf.scale_plane import SIZES as PODS
from perf.scale_plane import Pushed, pushes


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when everything gave a figure, however it looks."""
    parser = argparse.ArgumentParser(prog="python -m perf scale", description=__doc__)
    parser.add_argument(
        "--most", type=int, default=100_000, help="the most workloads and policies to try (100000)"
    )
    parser.add_argument("--no-processes", action="store_true", help="decisions only; needs no root")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    path = options.output / f"scale-{time.strftime('%Y-%m-%d-%H%M%S')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    with open(path, "w", encoding="utf-8") as file:

        def keep(kind: str, found: Any) -> None:
            file.write(json.dumps({kind: found}) + "\n")
            file.flush()
            print(kind, json.dumps(found), flush=True)

        keep("machine", machine())
        checks = _costs("policies", policies, POLICIES, options.most, keep)
        decisions = _costs("workloads", lookups, WORKLOADS, options.most, keep)
        pushed: list[Pushed] = []
        for size in PODS:
            if size <= options.most:
                for push in pushes(size):
                    keep("control plane", asdict(push))
                    pushed.append(push)
        loads: list[Loaded] = []
        whole: Node | None = None
        if not options.no_processes:
            for size in SIZES:
                if size <= options.most:
                    try:
                        loads.append(load(size))
                        keep("ztunnel", asdict(loads[-1]))
                    except ScaleError as error:
                        failed = True
                        keep("problem", f"{size} workloads: {error}")
            whole = node()
            keep("node", asdict(whole))
    text = report(machine(), checks, decisions, pushed, loads, whole)
    path.with_suffix(".md").write_text(text)
    for name, title, costs in (
        ("policies", "policies that apply to the destination", checks),
        ("workloads", "workloads in the mesh", decisions),
    ):
        plot = svg(
            f"Cost by {title}",
            Axis(title, logarithmic=True),
            Axis("µs each", logarithmic=True),
            [Line(what, _points(costs, what)) for what in _names(costs)],
        )
        path.with_name(f"{path.stem}-{name}.svg").write_text(plot)
    print(f"\n{text}\n{path}", file=sys.stdout)
    return 1 if failed else 0


def _costs(
    kind: str,
    measure: Callable[[int], Iterable[Cost]],
    sizes: Iterable[int],
    most: int,
    keep: Callable[[str, Any], None],
) -> list[Cost]:
    found = []
    for size in sizes:
        if size <= most:
            for cost in measure(size):
                keep(kind, asdict(cost))
                found.append(cost)
    return found


def report(
    where: dict[str, Any],
    checks: Sequence[Cost],
    decisions: Sequence[Cost],
    pushed: Sequence[Pushed],
    loads: Sequence[Loaded],
    whole: Node | None,
) -> str:
    """The tables in Markdown."""
    parts = [
        f"{where['processors']} processors ({where['model']}), Linux {where['kernel']}, Python "
        f"{where['python']} ({where['form']}). Median of seven tries (lowest to highest), µs each.",
        _table("policies that apply", checks),
        _table("workloads, and a tenth as many services", decisions),
    ]
    if pushed:
        parts.append(_pushed(pushed))
    if loads:
        rows = [
            "| workloads | in force after, s | one changed endpoint, ms (most) "
            "| control, MiB (peak) | each worker, MiB | ztunnel, MiB "
            "| a workload costs a worker, KiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in loads:
            each = "–"
            if one.workloads > loads[0].workloads:
                grown = (one.worker_mib - loads[0].worker_mib) * 1024
                each = f"{grown / (one.workloads - loads[0].workloads):.2f}"
            rows.append(
                f"| {one.workloads:,} | {one.seconds:.1f} | {one.change_ms:.1f} "
                f"({one.change_most_ms:.1f}) | {one.control_mib:.0f} ({one.peak_mib:.0f}) "
                f"| {one.worker_mib:.0f} | {one.total_mib:.0f} | {each} |"
            )
        parts.append(
            "A ztunnel with two workers, fed by delta ADS, proportional set size:\n\n"
            + "\n".join(rows)
        )
    if whole is not None:
        each = ", ".join(f"{name} {mib:.0f}" for name, mib in whole.parts.items())
        parts.append(
            f"A node with {whole.pods} captured pods and {whole.services:,} services: "
            f"**{whole.total:.0f} MiB** in all processes of its ztunnel ({each})."
        )
    return "\n\n".join(parts) + "\n"


def _pushed(pushed: Iterable[Pushed]) -> str:
    rows = [
        "| pods | first translation, s | what changes | at the client after, ms | p99 | most |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {one.pods:,} | {one.seconds:.1f} | {one.what} | **{one.median:.1f}** "
        f"| {one.p99:.1f} | {one.most:.1f} |"
        for one in pushed
    ]
    head = (
        "The control plane, from a changed object to a client of delta ADS, with a fifth as many "
        "services and a tenth as many policies:\n\n"
    )
    return head + "\n".join(rows)


def _names(costs: Iterable[Cost]) -> list[str]:
    return list(dict.fromkeys(cost.what for cost in costs))


def _points(costs: Iterable[Cost], what: str) -> list[tuple[float, float]]:
    return [(cost.size, cost.median) for cost in costs if cost.what == what]


def _table(title: str, costs: Sequence[Cost]) -> str:
    sizes = sorted({cost.size for cost in costs})
    rows = [
        f"| {title} | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for what in _names(costs):
        by_size = {cost.size: cost for cost in costs if cost.what == what}
        cells = [
            f"**{one.median:,.1f}** ({one.lowest:,.1f} to {one.highest:,.1f})"
            for one in (by_size[size] for size in sizes)
        ]
        rows.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
