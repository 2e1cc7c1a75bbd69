"""A YAML document read field by field, with the line of every complaint.

Nothing is ignored: an unknown or repeated key, or a value of another type, is an error. Aliases
are refused, because a few of them can make a document of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import yaml

_Value = TypeVar("_Value")
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_MAX_LEVELS = 32


class LocalFileError(ValueError):
    """A document that cannot be taken over; the text names file, line and field."""


class Field:
    """One value of a document, with the path that leads to it."""

    __slots__ = ("_file", "_node", "path")

    def __init__(self, file: str, path: str, node: yaml.Node) -> None:
        self._file = file
        self._node = node
        self.path = path

    def error(self, reason: str) -> LocalFileError:
        """A complaint about this value."""
        line = self._node.start_mark.line + 1
        return LocalFileError(f"{self._file}:{line}: {self.path or 'document'}: {reason}")

    @property
    def custom_tag(self) -> str:
        """The name of a tag such as `!Exact`; "" for a value without one."""
        tag = str(self._node.tag)
        return tag[1:] if tag.startswith("!") and len(tag) > 1 else ""

    @property
    def is_null(self) -> bool:
        """Whether nothing stands here."""
        return str(self._node.tag) == _CORE + "null"

    @property
    def is_mapping(self) -> bool:
        """Whether keys and values stand here."""
        return isinstance(self._node, yaml.MappingNode)

    def text(self) -> str:
        """A string. A value that YAML reads as something else must be quoted."""
        if not isinstance(self._node, yaml.ScalarNode):
            raise self.error("a text is expected")
        if not self.custom_tag and self._node.tag != _CORE + "str":
            raise self.error(f"a text is expected; quote {self._node.value!r}")
        return str(self._node.value)

    def integer(self, least: int, most: int) -> int:
        """A whole number of that range, in decimal digits, quoted or not."""
        value = str(self._node.value) if isinstance(self._node, yaml.ScalarNode) else ""
        if not (value.isascii() and value.isdigit() and len(value) <= 10):
            raise self.error("a whole number is expected")
        if not least <= int(value) <= most:
            raise self.error(f"{value} is not between {least} and {most}")
        return int(value)

    def boolean(self) -> bool:
        """`true` or `false`."""
        value = str(self._node.value) if isinstance(self._node, yaml.ScalarNode) else ""
        if self._node.tag != _CORE + "bool" or value.lower() not in ("true", "false"):
            raise self.error("true or false is expected")
        return value.lower() == "true"

    def choice(self, values: Mapping[str, _Value]) -> _Value:
        """One of the names in `values`, in any case."""
        text = self.text()
        for name, value in values.items():
            if name.lower() == text.lower():
                return value
        raise self.error(f"{text!r} is none of {', '.join(values)}")

    def items(self) -> list[Field]:
        """The elements of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.error("a list is expected")
        return [
            Field(self._file, f"{self.path}[{number}]", node)
            for number, node in enumerate(self._node.value)
        ]

    def pairs(self) -> Iterator[tuple[Field, Field]]:
        """Keys and values of a mapping, whose keys are data."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.error("a mapping is expected")
        seen = set()
        for key_node, value_node in self._node.value:
            key = Field(self._file, self.path, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise key.error("a key must be a text or a number")
            if key_node.value in seen:
                raise key.error(f"key {key_node.value!r} stands here twice")
            seen.add(key_node.value)
            yield key, Field(self._file, f"{self.path}[{key_node.value}]", value_node)

    def fields(self, known: Collection[str], required: Collection[str] = ()) -> Fields:
        """The values of a mapping whose keys are names of fields; null ones are left out."""
        found = {}
        for key, value in self.pairs():
            name = key.text()
            if name not in known:
                raise key.error(f"unknown key {name!r}; known are {', '.join(sorted(known))}")
            if not value.is_null:
                path = f"{self.path}.{name}" if self.path else name
                found[name] = Field(self._file, path, value._node)
        for name in required:
            if name not in found:
                raise self.error(f"{name} is missing")
        return Fields(found)


class Fields:
    """The fields of a mapping by name, each with a default where it is missing."""

    __slots__ = ("_found",)

    def __init__(self, found: Mapping[str, Field]) -> None:
        self._found = found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Field:
        return self._found[name]

    def items(self, name: str) -> list[Field]:
        """The elements of a list; none where it is missing."""
        return self._found[name].items() if name in self._found else []

    def text(self, name: str, default: str = "") -> str:
        """A string; the default also where it is empty."""
        return (self._found[name].text() if name in self._found else "") or default

    def integer(self, name: str, least: int, most: int, default: int) -> int:
        """A whole number of that range."""
        return self._found[name].integer(least, most) if name in self._found else default

    def boolean(self, name: str) -> bool:
        """True only where it stands so."""
        return name in self._found and self._found[name].boolean()

    def choice(self, name: str, values: Mapping[str, _Value], default: _Value) -> _Value:
        """One of the names in `values`."""
        return self._found[name].choice(values) if name in self._found else default

    def optional(self, name: str, read: Callable[[Field], _Value]) -> _Value | None:
        """What `read` makes of the field; None where it is missing."""
        return read(self._found[name]) if name in self._found else None


def read_yaml(text: str, file: str) -> Field | None:
    """The one document in `text`; None when there is none.

    Raises:
        LocalFileError: not YAML, several documents, aliases, or too many levels.
    """
    try:
        _refuse_what_explodes(text, file)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise LocalFileError(f"{file}:{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise LocalFileError(f"{file}:1: not YAML: {error}") from None
    return Field(file, "", node) if node is not None else None


def _refuse_what_explodes(text: str, file: str) -> None:
    """Look at the document as a stream of events first, which takes no recursion.

    The library's composer recurses, and in C, where too many levels end the process.
    """
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
        problem = ""
        if level > _MAX_LEVELS:
            problem = f"more than {_MAX_LEVELS} levels of nesting"
        elif isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) cannot be used here"
        if problem:
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            raise LocalFileError(f"{file}:{line}: document: {problem}")
