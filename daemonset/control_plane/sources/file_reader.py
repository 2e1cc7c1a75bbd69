"""One file of objects: bytes in, objects or problems out.

A file of thousands of objects takes seconds to read, and a change of it is usually one of one
object: the documents of a file that are as they were in its last version are not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.registry import AnyObject, read_object
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.sources.yaml_documents import (
    YamlError,
    read_documents,
    split_documents,
)

MAX_FILE_BYTES = 64 * 1024 * 1024

Piece = tuple[tuple[AnyObject | str, Located], ...]
"""The objects of some documents (the kind, of one that plays no part here), lines from 1."""


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """An object and where it stands: so many lines are above the document that it was read from."""

    object: AnyObject
    file: str
    located: Located
    above: int = 0

    @property
    def key(self) -> ObjectKey:
        return self.object.meta.key

    @property
    def line(self) -> int:
        return self.above + self.located.line

    def place(self, field: str = "") -> str:
        """``file:line`` of the object, or of one of its fields."""
        return f"{self.file}:{self.above + self.located.line_of(field)}"


@dataclass(frozen=True, slots=True)
class FileContent:
    """What one file holds; ``problems`` not empty means that none of it counts.

    ``ignored`` names the kinds that play no part here, with the line of the first of each;
    ``pieces`` are for the next version of the file.
    """

    file: str
    objects: tuple[LoadedObject, ...]
    problems: tuple[Problem, ...]
    ignored: tuple[tuple[str, int], ...] = ()
    pieces: Mapping[bytes, Piece] = field(default_factory=dict, compare=False, repr=False)


def read_file(file: str, data: bytes, before: FileContent | None = None) -> FileContent:
    """Read a file. Never raises: whatever is wrong ends in ``problems``, one per object.

    Args:
        before: an earlier version of it.
    """
    if len(data) > MAX_FILE_BYTES:
        return _refused(file, 1, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _refused(file, line, f"is not UTF-8: byte {data[error.start]:#04x}")
    try:
        pieces, objects, ignored = _read_pieces(file, text, before.pieces if before else {})
        problems: list[Problem] = []
    except (YamlError, ObjectError):
        # Whatever is wrong is said with its line in the file.
        pieces = {}
        try:
            documents = read_documents(text)
        except YamlError as error:
            return _refused(file, error.line, error.problem)
        objects, ignored, problems = _read_all(file, documents)
    seen: dict[ObjectKey, LoadedObject] = {}
    for loaded in objects:
        first = seen.setdefault(loaded.key, loaded)
        if first is not loaded:
            message = f"is there twice in this file (first on line {first.line})"
            problems.append(Problem(file, loaded.line, str(loaded.key), "", message))
    found = tuple(sorted(problems))
    return FileContent(file, tuple(objects), found, tuple(ignored.items()), pieces)


def _read_pieces(
    file: str, text: str, known: Mapping[bytes, Piece]
) -> tuple[dict[bytes, Piece], list[LoadedObject], dict[str, int]]:
    """A file without mistakes, document by document.

    Raises:
        YamlError, ObjectError: there is a mistake, or the documents depend on each other.
    """
    pieces: dict[bytes, Piece] = {}
    objects: list[LoadedObject] = []
    ignored: dict[str, int] = {}
    for above, part in split_documents(text):
        digest = blake2b(part.encode(), digest_size=16).digest()
        piece = known.get(digest)
        if piece is None:
            piece = tuple(_read_piece(part))
        pieces[digest] = piece
        for item, located in piece:
            if isinstance(item, str):
                ignored.setdefault(item, above + located.line)
            else:
                objects.append(LoadedObject(item, file, located, above))
    return pieces, objects, ignored


def _read_piece(text: str) -> Iterator[tuple[AnyObject | str, Located]]:
    for value in _flatten(read_documents(text)):
        item = read_object(value)
        yield (item if item is not None else _kind(value)), value


def _read_all(
    file: str, documents: list[Located]
) -> tuple[list[LoadedObject], dict[str, int], list[Problem]]:
    """All objects of a file, and what is wrong with the others."""
    objects: list[LoadedObject] = []
    problems: list[Problem] = []
    ignored: dict[str, int] = {}
    for value in _flatten(documents):
        try:
            item = read_object(value)
        except ObjectError as error:
            line = error.line or value.line
            problems.append(Problem(file, line, describe(value), error.field, error.problem))
            continue
        if item is None:
            ignored.setdefault(_kind(value), value.line)
        else:
            objects.append(LoadedObject(item, file, value))
    return objects, ignored, problems


def describe(value: Located) -> str:
    """An object's key as far as it can be read: for messages about objects that cannot be."""
    try:
        root = Section(value)
        kind = root.text("kind")
        metadata = root.section("metadata")
        name, namespace = metadata.text("name"), metadata.text("namespace")
    except ObjectError:
        return ""
    place = f"{namespace}/{name}" if namespace else name
    return f"{kind} {place}".strip()


def _kind(value: Located) -> str:
    root = Section(value)
    return f"{root.text('apiVersion')} {root.text('kind')}"


def _flatten(documents: list[Located]) -> Iterator[Located]:
    for document in documents:
        inner = document.value
        if isinstance(inner, dict) and _is_list(inner):
            items = inner["items"].value
            if items is None or isinstance(items, list):
                yield from items or ()
                continue
        yield document


def _is_list(fields: dict[str, Located]) -> bool:
    kind = fields.get("kind")
    is_list = kind is not None and isinstance(kind.value, str) and kind.value.endswith("List")
    return is_list and "items" in fields


def _refused(file: str, line: int, message: str) -> FileContent:
    return FileContent(file, (), (Problem(file, line, "", "", message),))
