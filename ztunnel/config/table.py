"""The table of all variables, for ``python -m ztunnel help`` and for the README."""

from __future__ import annotations

import textwrap

from ztunnel.config.load import load_with
from ztunnel.config.reader import Variable


def variables() -> list[Variable]:
    """Every variable that is read, in the order in which it is read."""
    reader, _ = load_with({}, mesh_config=None, cores=1)
    return list(reader.variables.values())


def help_text(width: int = 100) -> str:
    """All variables with what they mean, as paragraphs for a terminal."""
    lines: list[str] = []
    for variable in variables():
        lines.append(f"{variable.name}  [{variable.default}]")
        about = f"{variable.meaning} Allowed: {variable.allowed}."
        lines += textwrap.wrap(about, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"
