"""Strict, typed reading of one mapping of an object.

A reader asks for the fields it knows by type; whatever is of another type is an ``ObjectError``
that names field and line. ``finish`` refuses the fields nobody asked for: used for the objects
that guard something, where a misspelt field would silently widen a policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from daemonset.control_plane.objects.located import Located, kind_of

EMPTY: Mapping[str, str] = MappingProxyType({})


class ObjectError(Exception):
    """An object that cannot be read: ``field`` is a path, ``line`` is 0 where unknown."""

    def __init__(self, field: str, problem: str, line: int) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem
        self.line = line


class Section:
    """One mapping of an object, at ``path``; an absent mapping reads as an empty one.

    ``strict`` sections refuse explicit nulls too (in a policy, "nothing" is ambiguous).
    """

    __slots__ = ("_fields", "_seen", "_strict", "line", "path")

    def __init__(self, value: Located | None, path: str = "", *, strict: bool = False) -> None:
        self._strict = strict
        self._seen: set[str] = set()
        self.path = path
        self.line = value.line if value is not None else 0
        self._fields: dict[str, Located] = {}
        if value is None:
            return
        if not isinstance(value.value, dict):
            raise ObjectError(path, f"must be a mapping, not {kind_of(value)}", value.line)
        self._fields = value.value

    def strictly(self) -> Section:
        """The same section, refusing nulls from here on."""
        self._strict = True
        return self

    def at(self, name: str) -> str:
        """The path of a field of this section."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, problem: str) -> ObjectError:
        """An error about a field of this section, to be raised by the caller."""
        value = self._fields.get(name)
        line = value.line if value is not None else self.line
        return ObjectError(self.at(name) if name else self.path, problem, line)

    def has(self, name: str) -> bool:
        """Is the field there, with a value?"""
        return self._get(name) is not None

    def _get(self, name: str) -> Located | None:
        self._seen.add(name)
        value = self._fields.get(name)
        if value is None:
            return None
        if value.value is None:
            if self._strict:
                raise self.error(name, "has no value: give one, or leave the field out")
            return None
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value.value, str):
            raise self.error(name, f"must be a string, not {kind_of(value)}: put it in quotes")
        return value.value

    def required_text(self, name: str) -> str:
        text = self.text(name)
        if not text:
            raise self.error(name, "is missing")
        return text

    def choice(self, name: str, allowed: Collection[str], default: str = "") -> str:
        text = self.text(name, default)
        if text not in allowed and text != default:
            raise self.error(name, f"must be one of {', '.join(sorted(allowed))}, not {text!r}")
        return text

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value.value, int) or isinstance(value.value, bool):
            raise self.error(name, f"must be a whole number, not {kind_of(value)}")
        if not low <= value.value <= high:
            raise self.error(name, f"must be from {low} to {high}, not {value.value}")
        return value.value

    def port(self, name: str) -> int | None:
        return self.integer(name, 1, 65535)

    def required_port(self, name: str) -> int:
        port = self.port(name)
        if port is None:
            raise self.error(name, "is missing")
        return port

    def integer_or_text(self, name: str) -> int | str | None:
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value.value, str):
            return value.value
        return self.integer(name, 0, 65535)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value.value, bool):
            raise self.error(name, f"must be true or false, not {kind_of(value)}")
        return value.value

    def texts(self, name: str) -> tuple[str, ...]:
        result: list[str] = []
        for index, item in enumerate(self._items(name)):
            if not isinstance(item.value, str):
                problem = f"must be a string, not {kind_of(item)}: put it in quotes"
                raise ObjectError(f"{self.at(name)}[{index}]", problem, item.line)
            result.append(item.value)
        return tuple(result)

    def text_map(self, name: str) -> Mapping[str, str]:
        value = self._get(name)
        if value is None:
            return EMPTY
        if not isinstance(value.value, dict):
            raise self.error(name, f"must be a mapping, not {kind_of(value)}")
        result: dict[str, str] = {}
        for key, item in value.value.items():
            if not isinstance(item.value, str):
                problem = f"must be a string, not {kind_of(item)}: put it in quotes"
                raise ObjectError(f"{self.at(name)}.{key}", problem, item.line)
            result[key] = item.value
        return result

    def names(self) -> tuple[str, ...]:
        """The names of all fields, for mappings whose keys are data."""
        self._seen.update(self._fields)
        return tuple(self._fields)

    def section(self, name: str) -> Section:
        return Section(self._get(name), self.at(name), strict=self._strict)

    def required_section(self, name: str) -> Section:
        if not self.has(name):
            raise self.error(name, "is missing")
        return self.section(name)

    def sections(self, name: str) -> list[Section]:
        return [
            Section(item, f"{self.at(name)}[{index}]", strict=self._strict)
            for index, item in enumerate(self._items(name))
        ]

    def _items(self, name: str) -> list[Located]:
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value.value, list):
            raise self.error(name, f"must be a list, not {kind_of(value)}")
        return value.value

    def finish(self) -> None:
        """Refuse the fields that nobody asked for.

        Raises:
            ObjectError: naming the first unknown field, in the order of the document.
        """
        for name in self._fields:
            if name not in self._seen:
                known = ", ".join(sorted(self._seen))
                raise self.error(name, f"is not a field that is known here (known: {known})")
