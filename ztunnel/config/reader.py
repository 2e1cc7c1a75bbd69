"""Reads variables one by one, and remembers each name, default and meaning as it does so.

That a variable is documented exactly when it is read keeps the printed table true: the table is
what a load of an empty environment has recorded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from ztunnel.config import values

OWN_PREFIX: Final = "ZTUNNEL_"
# Kubernetes injects these for every Service of the pod's namespace whose name begins alike.
_SERVICE_LINK: Final = re.compile(r"ZTUNNEL_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT|PORT)(?:_\w+)?")

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class ConfigError(Exception):
    """The environment cannot be used. ``problems`` holds one sentence for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Variable:
    """One documented variable. ``default`` and ``allowed`` are words for people."""

    name: str
    default: str
    allowed: str
    meaning: str


class Reader:
    """Typed access to an environment. A value that cannot be read is noted in ``problems`` and
    stands in with its default, so that all problems are found in one go."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []
        self.variables: dict[str, Variable] = {}

    def read(
        self,
        name: str,
        default: T,
        parse: Callable[[str], T],
        meaning: str,
        allowed: str,
        shown: str | None = None,
    ) -> T:
        """The value of ``name`` by ``parse``, or ``default`` where it is not set."""
        self.variables[name] = Variable(name, default_text(default, shown), allowed, meaning)
        text = self.environment.get(name)
        if text is None:
            return default
        try:
            return parse(text.strip())
        except ValueError as error:
            self.problems.append(f"{name}={quoted(text)}: {error}")
            return default

    def text(self, name: str, default: str, meaning: str) -> str:
        return self.read(name, default, str, meaning, "text")

    def optional_text(self, name: str, meaning: str, shown: str = "not set") -> str | None:
        """None where the variable is not set or empty."""
        return self.read(name, None, lambda text: text or None, meaning, "text", shown)

    def boolean(self, name: str, default: bool, meaning: str) -> bool:
        return self.read(name, default, values.boolean, meaning, "true or false")

    def integer(self, name: str, default: int, meaning: str, minimum: int, maximum: int) -> int:
        return self.read(
            name,
            default,
            lambda text: values.integer(text, minimum, maximum),
            meaning,
            f"{minimum} to {maximum}",
        )

    def duration(self, name: str, default: str, meaning: str, positive: bool = False) -> float:
        """Seconds. ``default`` is written as a user would write it."""

        def parse(text: str) -> float:
            seconds = values.duration(text)
            if positive and seconds <= 0:
                raise ValueError("allowed is a duration above zero")
            return seconds

        return self.read(name, values.duration(default), parse, meaning, "duration", default)

    def choice(self, name: str, default: E, meaning: str) -> E:
        """A member of the default's enumeration by its value."""
        kind = type(default)
        words = " or ".join(str(member.value) for member in kind)

        def parse(text: str) -> E:
            for member in kind:
                if member.value == text.lower():
                    return member
            raise ValueError(f"allowed are {words}")

        return self.read(name, default, parse, meaning, words, str(default.value))

    def unsupported(self, name: str, only: str, why: str) -> None:
        """A variable of Istio's that can have one effect here: anything but ``only`` is refused."""

        def parse(text: str) -> str:
            if text.lower() != only:
                raise ValueError(f"allowed is only {quoted(only)}: {why}")
            return only

        self.read(name, only, parse, why, quoted(only))

    def prefixed(self, prefix: str, meaning: str) -> dict[str, str]:
        """All variables that begin with ``prefix``, by the rest of their names."""
        self.variables[prefix + "*"] = Variable(prefix + "*", "none", "text", meaning)
        return {
            name.removeprefix(prefix): value
            for name, value in sorted(self.environment.items())
            if name.startswith(prefix) and len(name) > len(prefix)
        }

    def reject_unknown(self) -> None:
        """Notes every variable with our own prefix that nobody has read: a typo would otherwise
        leave its writer believing that it works."""
        for name in sorted(self.environment):
            if not name.startswith(OWN_PREFIX) or name in self.variables:
                continue
            if _SERVICE_LINK.fullmatch(name):
                continue
            near = difflib.get_close_matches(name, self.variables, 1, 0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.problems.append(f"{name} is not a variable that ztunnel knows{hint}")


def quoted(text: str) -> str:
    """``text`` for an error message, cut where it is long."""
    return f'"{text if len(text) <= 80 else text[:77] + "..."}"'


def default_text(default: object, shown: str | None) -> str:
    if shown is not None:
        return shown
    if isinstance(default, bool):
        return str(default).lower()
    if default is None:
        return "not set"
    return str(default) or '""'
