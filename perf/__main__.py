"""`python -m perf`: measure, write perf/results/, print the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from perf import scale_command, soak
from perf.bench import LoadError
from perf.build import BuildError, Tools, build
from perf.implementations import ALL, Implementation
from perf.record import RESULTS, Recorder, Result, read
from perf.report import plots, report
from perf.same_node import SAME_NODE
from perf.works import WORKS, Kind, Work


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    names = [implementation.name for implementation in (*ALL, *SAME_NODE)]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"an implementation to run; may be repeated (all that work here): {', '.join(names)}",
    )
    parser.add_argument(
        "--work",
        action="append",
        choices=[work.name for work in WORKS],
        metavar="NAME",
        help="a work to measure; may be repeated (all): " + ", ".join(w.name for w in WORKS),
    )
    parser.add_argument(
        "--same-node", action="store_true", help="two pods of one node, instead of on two"
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured, each work (3)")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before it (0.5)")
    parser.add_argument("--quick", action="store_true", help="one round of one second each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.rounds, parsed.seconds, parsed.warm_up = 1, 1.0, 0.2
    return parsed


def chosen(only: Sequence[str] | None, same_node: bool = False) -> list[Implementation]:
    """What can run here; what was asked for by name and cannot ends the run."""
    found: list[Implementation] = []
    everything = SAME_NODE if same_node else ALL
    for implementation in everything if only is None else (*ALL, *SAME_NODE):
        if only is not None and implementation.name not in only:
            continue
        reason = implementation.missing()
        if reason is None:
            found.append(implementation)
        elif only is not None:
            sys.exit(f"{implementation.name}: {reason}")
        else:
            print(f"without {implementation.name}: {reason}", file=sys.stderr)
    return found


def measure_round(
    implementation: Implementation,
    works: Sequence[Work],
    tools: Tools,
    number: int,
    seconds: float,
    warm_up: float,
    recorder: Recorder,
) -> None:
    """All works by one implementation, between pods and in processes made for this round."""
    with (
        tempfile.TemporaryDirectory() as folder,
        implementation.running(tools, Path(folder)) as running,
        running.bench.far_end(),
    ):
        for work in works:
            if work.kind is Kind.IDLE and not running.pids:
                continue  # nothing there to take memory
            try:
                figures = work.figures(running.bench.run(work, running.pids, seconds, warm_up))
                result = Result(implementation.name, work.name, number, figures)
                said = f"{figures.rate:,.4g} {work.kind.value}"
            except LoadError as error:
                said = "\n".join([str(error), *running.complaints()])
                result = Result(implementation.name, work.name, number, None, said)
            recorder.add(result)
            print(f"round {number}  {implementation.name:10} {work.name:10} {said}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when every work gave a figure, however it looks."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] == "scale":
        return scale_command.main(words[1:])
    if words and words[0] == "soak":
        return soak.main(words[1:])
    options = parse(words)
    try:
        tools = build()
    except BuildError as error:
        sys.exit(str(error))
    implementations = chosen(options.only, options.same_node)
    works = [work for work in WORKS if options.work is None or work.name in options.work]
    path = options.output / f"{time.strftime('%Y-%m-%d-%H%M%S')}.jsonl"
    settings = {key: getattr(options, key) for key in ("rounds", "seconds", "warm_up")}
    recorder = Recorder(path, settings)
    for number in range(1, options.rounds + 1):
        # Nobody is always first: a machine that gets warmer, or busier, favours the first.
        first = (number - 1) % len(implementations)
        for implementation in implementations[first:] + implementations[:first]:
            try:
                measure_round(
                    implementation, works, tools, number, options.seconds, options.warm_up, recorder
                )
            except Exception as error:  # whatever stops one must not cost the others their figures
                traceback.print_exc()
                reason = f"stopped: {error}".splitlines()[0]
                recorder.add(Result(implementation.name, "all", number, None, reason))
    with open(path, encoding="utf-8") as lines:
        head, results = read(lines)
    text = report(head, implementations, works, results)
    path.with_suffix(".md").write_text(text)
    for name, plot in plots(implementations, results).items():
        path.with_name(f"{path.stem}-{name}.svg").write_text(plot)
    print(f"\n{text}\n{path}")
    return 0 if all(result.figures is not None for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
