"""Reading back the access log that a ztunnel writes as text."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_FIELD = re.compile(r'([a-z_.]+)=("(?:[^"\\]|\\.)*"|[^ ]*)')


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One connection, as one proxy saw it."""

    text: str
    time: str
    level: str
    message: str
    fields: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        """A field's value, empty where the line does not have it."""
        return self.fields.get(key, "")

    @property
    def inbound(self) -> bool:
        return self["direction"] == "inbound"


def parse_line(text: str) -> AccessLine | None:
    """The access log line in *text*; None when it is a line of another kind."""
    parts = text.rstrip("\n").split("\t")
    if len(parts) != 5 or parts[2] != "access":
        return None
    fields = {
        key: json.loads(value) if value.startswith('"') else value
        for key, value in _FIELD.findall(parts[4])
    }
    return AccessLine(text.rstrip("\n"), parts[0], parts[1], parts[3], fields)


def parse_lines(text: str) -> Iterator[AccessLine]:
    """All access log lines among the whole lines of *text*."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            parsed = parse_line(line)
            if parsed is not None:
                yield parsed
