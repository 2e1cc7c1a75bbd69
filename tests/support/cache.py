"""Where peers of the tests lie that are built or fetched once, and the commands that do so."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CANNOT = 3
"""Exit status of such a command where there is none to be had; `.ci/run` goes on without it."""


class Unavailable(Exception):
    """There is no such peer here, and none can be made; the text says why."""


def cache(name: str) -> Path:
    """The folder of one kind of them. It may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ambientd" / name


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock while something is made: several test runs may start at once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_command(
    module: str,
    what: str,
    build: Callable[[float | None], None],
    lies: Callable[[], Iterable[object]],
) -> int:
    """`python -m MODULE [--limit SECONDS]`: makes what is missing, and prints where all of it lies.

    Args:
        what: is missing where that cannot be done.
        build: takes the limit; raises Unavailable.
        lies: gives the paths, after that.

    Returns:
        its exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="give up after this time")
    try:
        build(parser.parse_args().limit)
    except Unavailable as error:
        print(f"no {what} for the tests: {error}", file=sys.stderr)
        return CANNOT
    for path in lies():
        print(path)
    return 0
