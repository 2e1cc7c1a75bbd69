"""How the demo and ``ambient up`` speak to the person in front of them."""

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

WIDTH = 96

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Terminal:
    """Plain text, with colours where the output is a terminal and nobody objects (NO_COLOR)."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty() and "NO_COLOR" not in os.environ
        self._open_line = False
        self._width = WIDTH
        if out.isatty():
            self._width = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns - 1))

    def style(self, text: str, name: str) -> str:
        return f"\033[{_STYLES[name]}m{text}\033[0m" if self._colours else text

    def say(self, text: str = "") -> None:
        """A paragraph, wrapped."""
        self._line("\n".join(textwrap.wrap(text, self._width)))

    def title(self, text: str) -> None:
        self._line()
        self._line(self.style(text, "bold"))

    def command(self, words: str) -> None:
        """A command as somebody would type it."""
        self._line(self.style(f"  $ {words}", "cyan"))

    def quote(self, lines: Iterable[str]) -> None:
        """What somebody else wrote: indented, not wrapped."""
        for line in lines:
            self._line(f"    {line}")

    def good(self, text: str) -> None:
        """A fact that was just measured and is as it should be."""
        self._bullet(self.style("✓", "green"), text)

    def bad(self, text: str) -> None:
        self._bullet(self.style("✗", "red"), text)

    def note(self, text: str) -> None:
        """Something that happened by itself."""
        self._bullet(self.style("!", "yellow"), text)

    @contextmanager
    def progress(self, doing: str) -> Iterator[None]:
        """Names what is being waited for, while it is."""
        line = f"  … {doing}"
        if self._colours:
            # One that the terminal wraps could not be taken away again.
            self._out.write(line if len(line) <= self._width else f"{line[: self._width - 1]}…")
        else:
            self._out.write(f"{line}\n")
        self._out.flush()
        self._open_line = self._colours
        try:
            yield
        finally:
            if self._open_line:
                self._out.write("\r\033[K")
                self._open_line = False
            self._out.flush()

    def _bullet(self, mark: str, text: str) -> None:
        first, *rest = text.splitlines() or [""]
        wrapped = textwrap.wrap(first, self._width - 4) or [""]
        self._line(f"  {mark} {wrapped[0]}")
        for line in (*wrapped[1:], *rest):
            self._line(f"    {line}")

    def _line(self, text: str = "") -> None:
        if self._open_line:  # something happened while a progress line stood there
            self._out.write("\r\033[K")
            self._open_line = False
        self._out.write(f"{text}\n")
        self._out.flush()
