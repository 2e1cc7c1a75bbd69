"""What all objects have: a key, labels, annotations, owners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from daemonset.control_plane.objects.section import Section

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Names one object. ``namespace`` is empty for kinds of the whole cluster."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {place}"


@dataclass(frozen=True, slots=True)
class Owner:
    """An ownerReference with ``controller: true``."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """The ``metadata`` of an object. ``created`` is RFC 3339 text, so that it sorts by age."""

    kind: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    uid: str = ""
    created: str = ""
    deleting: bool = False
    generate_name: str = ""
    controller: Owner | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.namespace, self.name)

    @property
    def age_order(self) -> tuple[str, str, str]:
        """Oldest first; objects without a time come last (a folder's have none), then by name."""
        return (self.created or "~", self.namespace, self.name)


class MeshObject(Protocol):
    """Any object that has been read."""

    @property
    def meta(self) -> ObjectMeta: ...


def read_meta(root: Section, kind: str, *, namespaced: bool) -> ObjectMeta:
    """Read ``metadata``. An object without a namespace is in ``default``, as with kubectl.

    Raises:
        ObjectError: a field is missing, of the wrong type, or not a Kubernetes name.
    """
    section = root.required_section("metadata")
    name = section.required_text("name")
    namespace = section.text("namespace")
    # An unexpected name would end in keys such as "namespace/name", where a slash changes meaning.
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise section.error("name", f"is not a Kubernetes name: {name!r}")
    if namespaced:
        namespace = namespace or "default"
        if not _NAME.fullmatch(namespace) or len(namespace) > 63:
            raise section.error("namespace", f"is not a Kubernetes name: {namespace!r}")
    elif namespace:
        raise section.error("namespace", f"a {kind} belongs to no namespace")
    controller = None
    for owner in section.sections("ownerReferences"):
        if owner.flag("controller"):
            controller = Owner(
                owner.text("apiVersion"), owner.required_text("kind"), owner.required_text("name")
            )
    return ObjectMeta(
        kind=kind,
        namespace=namespace,
        name=name,
        labels=section.text_map("labels"),
        annotations=section.text_map("annotations"),
        uid=section.text("uid"),
        created=section.text("creationTimestamp"),
        deleting=section.has("deletionTimestamp"),
        generate_name=section.text("generateName"),
        controller=controller,
    )
