"""YAML with line numbers: text in, trees of ``Located`` values out.

Built on the parser's events, without its composer: no recursion over what a file nests, no
aliases that multiply, no tags that make objects, and scalars as Kubernetes reads them (no dates,
no base-60 numbers).
"""

from __future__ import annotations

import re
from itertools import pairwise

import yaml

from daemonset.control_plane.objects.located import Located, Scalar

MAX_DEPTH = 64
MAX_VALUES = 2_000_000

# At the begin of a line these three always begin a document, also inside of quotes and of block
# scalars (YAML 1.2.2, 9.1.2: c-forbidden).
_DOCUMENT = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_OTHER_BREAKS = re.compile("\r(?!\n)|[\x85\u2028\u2029]")
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE|yes|Yes|YES|on|On|ON")
_FALSE = re.compile(r"false|False|FALSE|no|No|NO|off|Off|OFF")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_BASED = re.compile(r"0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,3})")
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(Exception):
    """Text that is not the YAML that Kubernetes objects are written in."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


class _Open:
    """A collection whose end has not come yet; ``key`` is the pending key of a mapping."""

    __slots__ = ("items", "key", "key_line", "line")

    def __init__(self, items: list[Located] | dict[str, Located], line: int) -> None:
        self.items = items
        self.line = line
        self.key: str | None = None
        self.key_line = 0


def split_documents(text: str) -> list[tuple[int, str]]:
    """A text in parts of one document (or a few) each, with the number of lines above the part.

    Raises:
        YamlError: documents depend on each other, or lines end in a way that is not usual.
    """
    if "\n%" in text or text.startswith("%") or _OTHER_BREAKS.search(text):
        raise YamlError(1, "is no text whose documents can be told apart by their lines")
    starts = [0, *(match.start() for match in _DOCUMENT.finditer(text)), len(text)]
    parts: list[tuple[int, str]] = []
    above = 0
    for start, end in pairwise(starts):
        part = text[start:end]
        parts.append((above, part))
        above += part.count("\n")
    return parts


def read_documents(text: str) -> list[Located]:
    """All documents of a file; empty ones are left out.

    Raises:
        YamlError: it is not YAML, or uses what objects have no use for (anchors, tags, merge
            keys, keys that are no strings, a key twice), or is too deep or too large.
    """
    documents: list[Located] = []
    stack: list[_Open] = []
    values = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = _line(event.start_mark)
            if isinstance(event, yaml.ScalarEvent):
                finished = Located(_scalar(event, line), line)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                _refuse_extras(event.anchor, event.tag, line)
                if len(stack) >= MAX_DEPTH:
                    raise YamlError(line, f"nested more than {MAX_DEPTH} deep")
                mapping = isinstance(event, yaml.MappingStartEvent)
                if mapping and stack and _wants_key(stack[-1]):
                    raise YamlError(line, "a mapping cannot be a key")
                stack.append(_Open({} if mapping else [], line))
                continue
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                opened = stack.pop()
                finished = Located(opened.items, opened.line)
            elif isinstance(event, yaml.AliasEvent):
                raise YamlError(line, "aliases (*name) are not supported: write the value out")
            else:
                continue
            values += 1
            if values > MAX_VALUES:
                raise YamlError(line, f"more than {MAX_VALUES} values in one file")
            if not stack:
                if finished.value is not None:
                    documents.append(finished)
                continue
            _put(stack[-1], finished)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # At the end of the file the mark is behind the last line.
        last = text.count("\n", 0, len(text) - 1) + 1
        line = min(_line(mark), last)
        problem = error.problem or error.context or "not YAML"
        lines = text.split("\n")
        if "cannot start any token" in problem and "\t" in lines[line - 1]:
            problem = "a tab stands where only spaces may"
        raise YamlError(line, problem) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        raise YamlError(line, str(error).splitlines()[0]) from None
    return documents


def _line(mark: yaml.error.Mark | yaml._yaml.Mark | None) -> int:
    return mark.line + 1 if mark is not None else 1


def _wants_key(opened: _Open) -> bool:
    return isinstance(opened.items, dict) and opened.key is None


def _put(opened: _Open, value: Located) -> None:
    if isinstance(opened.items, list):
        opened.items.append(value)
    elif opened.key is None:
        inner = value.value
        if isinstance(inner, int) and not isinstance(inner, bool):
            inner = str(inner)  # JSON, which is what the API server sees, has string keys alone
        if not isinstance(inner, str):
            raise YamlError(value.line, "a key must be a string: put it in quotes")
        if inner in opened.items:
            raise YamlError(value.line, f"the key {inner!r} is there twice")
        opened.key = inner
        opened.key_line = value.line
    else:
        # A field stands where its name stands, also when its value begins on the next line.
        if value.line != opened.key_line:
            value = Located(value.value, opened.key_line)
        opened.items[opened.key] = value
        opened.key = None


def _refuse_extras(anchor: str | None, tag: str | None, line: int) -> None:
    if anchor is not None:
        raise YamlError(line, "anchors (&name) are not supported: write the value out")
    if tag is not None:
        raise YamlError(line, f"the tag {tag} is not supported")


def _scalar(event: yaml.ScalarEvent, line: int) -> Scalar:
    text: str = event.value
    if event.anchor is not None or event.tag not in (None, "!", "tag:yaml.org,2002:str"):
        _refuse_extras(event.anchor, event.tag, line)
    if event.tag is not None or not event.implicit[0]:
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text == "<<":
        raise YamlError(line, "merge keys (<<) are not supported: write the fields out")
    return text
