"""One file of objects: bytes in, objects or problems out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.registry import AnyObject, read_object
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.sources.yaml_documents import YamlError, read_documents

MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """An object and where it stands."""

    object: AnyObject
    file: str
    located: Located

    @property
    def key(self) -> ObjectKey:
        return self.object.meta.key

    def place(self, field: str = "") -> str:
        """``file:line`` of the object, or of one of its fields."""
        return f"{self.file}:{self.located.line_of(field)}"


@dataclass(frozen=True, slots=True)
class FileContent:
    """What one file holds; ``problems`` not empty means that none of it counts.

    ``ignored`` names the kinds that play no part here, with the line of the first of each.
    """

    file: str
    objects: tuple[LoadedObject, ...]
    problems: tuple[Problem, ...]
    ignored: tuple[tuple[str, int], ...] = ()


def read_file(file: str, data: bytes) -> FileContent:
    """Read a file. Never raises: whatever is wrong ends in ``problems``, one per object."""
    if len(data) > MAX_FILE_BYTES:
        return _refused(file, 1, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _refused(file, line, f"is not UTF-8: byte {data[error.start]:#04x}")
    try:
        documents = read_documents(text)
    except YamlError as error:
        return _refused(file, error.line, error.problem)
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
    seen: dict[ObjectKey, LoadedObject] = {}
    for loaded in objects:
        first = seen.setdefault(loaded.key, loaded)
        if first is not loaded:
            message = f"is there twice in this file (first on line {first.located.line})"
            problems.append(Problem(file, loaded.located.line, str(loaded.key), "", message))
    return FileContent(file, tuple(objects), tuple(sorted(problems)), tuple(ignored.items()))


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
