"""Kubernetes objects of a folder, as far as the machine under the mesh needs them.

The control plane has its own, strict reader of the same files. This one wants only what nodes and
pods are made from (Node, Pod, Service, EndpointSlice), and leaves every other kind alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.sources.yaml_documents import YamlError, read_documents


class TopologyError(Exception):
    """A folder that cannot become a mesh; the text names the file, the object and the field."""


@dataclass(frozen=True, slots=True)
class Object:
    """One Kubernetes object, and the file that it came from."""

    kind: str
    namespace: str
    name: str
    body: Mapping[str, Any]
    file: str
    at: str = ""
    """Where in the object *body* is, with a final dot: empty for the object itself."""
    written: Located | None = None
    """The whole object as it stands in the file, with its lines."""

    def get(self, path: str, kind: type, default: Any = None) -> Any:
        """The value at a dotted *path*, checked to be of *kind*.

        Raises:
            TopologyError: there is a value and it is something else.
        """
        value: Any = self.body
        for part in path.split("."):
            if not isinstance(value, Mapping):
                raise self.error(path, "is not inside a mapping")
            value = value.get(part)
            if value is None:
                return default
        if not isinstance(value, kind):
            raise self.error(path, f"should be a {kind.__name__}, is {value!r}")
        return value

    def error(self, field: str, reason: str) -> TopologyError:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        line = f":{self.written.line_of(self.at + field)}" if self.written is not None else ""
        return TopologyError(f"{self.file}{line}: {self.kind} {where}: {self.at}{field} {reason}")

    def items(self, path: str) -> "Iterator[Object]":
        """The mappings of a list at a dotted *path*, each as a part of this object.

        Raises:
            TopologyError: it is no list, or something in it is no mapping.
        """
        for number, body in enumerate(self.get(path, list, [])):
            at = f"{path}[{number}]"
            if not isinstance(body, Mapping):
                raise self.error(at, f"should be a mapping, is {body!r}")
            yield replace(self, body=body, at=f"{self.at}{at}.")

    def part(self, path: str) -> "Object | None":
        """The mapping at a dotted *path* as a part of this object. Raises TopologyError."""
        body = self.get(path, dict)
        return None if body is None else replace(self, body=body, at=f"{self.at}{path}.")


CLUSTER_SCOPED = frozenset({"Namespace", "Node"})


def parse(text: str, file: str = "inline YAML") -> Iterator[Object]:
    """The objects of one YAML text; documents may be lists (``kind: List``).

    Raises:
        TopologyError: not YAML, or a document is not a Kubernetes object.
    """
    try:
        documents = read_documents(text)
    except YamlError as error:
        raise TopologyError(f"{file}:{error.line}: not YAML: {error.problem}") from error
    while documents:
        written = documents.pop(0)
        document = _plain(written)
        if not isinstance(document, dict):
            raise TopologyError(f"{file}:{written.line}: {document!r} is not a Kubernetes object")
        if document.get("kind") == "List":
            assert isinstance(written.value, dict)
            items = written.value.get("items")
            if items is not None and isinstance(items.value, list):
                documents = [*items.value, *documents]
            continue
        yield _object(document, written, file)


def _plain(value: Located) -> Any:
    inner = value.value
    if isinstance(inner, dict):
        return {key: _plain(item) for key, item in inner.items()}
    if isinstance(inner, list):
        return [_plain(item) for item in inner]
    return inner


def _object(document: dict[str, Any], written: Located, file: str) -> Object:
    kind = document.get("kind")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(kind, str) or not isinstance(name, str):
        raise TopologyError(
            f"{file}:{written.line}: a document without kind or metadata.name: {document!r:.80}"
        )
    assert isinstance(metadata, dict)
    namespace = metadata.get("namespace")
    if namespace is None:
        namespace = "" if kind in CLUSTER_SCOPED else "default"
    return Object(kind, str(namespace), name, document, file, written=written)


def read_folder(folder: Path) -> list[Object]:
    """Every object in ``*.yaml`` and ``*.yml`` below *folder*, by file name, hidden ones left out.

    Raises:
        TopologyError: the folder or a file cannot be read.
    """
    if not folder.is_dir():
        raise TopologyError(f"{folder}: there is no such folder")
    found: list[Object] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix not in (".yaml", ".yml") or not path.is_file():
            continue
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TopologyError(f"{relative}: cannot be read: {error}") from error
        found.extend(parse(text, str(relative)))
    return found
