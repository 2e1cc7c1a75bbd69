"""Builds the load generator."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE / ".cache"


class BuildError(Exception):
    """The load generator could not be built; the text says why."""


@dataclass(frozen=True, slots=True)
class Tools:
    tcpload: Path
    tcpserve: Path


def build() -> Tools:
    """Compile what has changed; needs make and a C compiler. Raises BuildError."""
    CACHE.mkdir(exist_ok=True)
    command = ["make", "--silent", "-C", str(HERE / "load"), f"OUT={CACHE}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError("the load generator is in C: install gcc and make") from error
    if done.returncode != 0:
        raise BuildError(f"the load generator does not compile: {done.stderr.strip()}")
    return Tools(CACHE / "tcpload", CACHE / "tcpserve")
