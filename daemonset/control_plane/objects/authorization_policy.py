"""AuthorizationPolicy (security.istio.io/v1), read strictly: unknown fields are errors.

Everything is kept as written, L7 fields too: what becomes of them is up to the translation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import read_network
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.peer_authentication import read_workload_selector
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.control_plane.objects.selector import LabelSelector

ACTIONS = ("ALLOW", "DENY", "AUDIT", "CUSTOM")
SOURCE_FIELDS = (
    "principals",
    "requestPrincipals",
    "namespaces",
    "serviceAccounts",
    "ipBlocks",
    "remoteIpBlocks",
)
OPERATION_FIELDS = ("hosts", "ports", "methods", "paths")
_SERVICE_ACCOUNT = re.compile(r"([a-z0-9.-]+/)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_CONDITION = re.compile(
    r"source\.(ip|namespace|principal|serviceAccount)|remote\.ip|destination\.(ip|port)"
    r"|connection\.sni|request\.(headers|auth\.claims)\[.+\](\[.+\])*"
    r"|request\.auth\.(principal|audiences|presenter)|experimental\.envoy\.filters\..+"
)

Values = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """One ``source`` or ``operation``: its fields by name, the negated ones as ``notX``."""

    path: str
    fields: Mapping[str, Values]


@dataclass(frozen=True, slots=True)
class Condition:
    """One ``when`` entry."""

    path: str
    key: str
    values: Values
    not_values: Values


@dataclass(frozen=True, slots=True)
class Rule:
    """``sources`` and ``operations`` are empty where the rule has no ``from`` or ``to``."""

    path: str
    sources: tuple[Element, ...]
    operations: tuple[Element, ...]
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class TargetRef:
    """What a policy for waypoints hangs on; ``namespace`` is the policy's where none is given."""

    group: str
    kind: str
    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """``rules`` is None where the object has no ``rules`` (which is not the same as no policy)."""

    meta: ObjectMeta
    selector: LabelSelector | None
    targets: tuple[TargetRef, ...]
    action: str
    rules: tuple[Rule, ...]
    provider: str
    dry_run: bool


def read_authorization_policy(root: Section) -> AuthorizationPolicy:
    """Raises ObjectError."""
    meta = read_meta(root, "AuthorizationPolicy", namespaced=True)
    spec = root.section("spec").strictly()
    selector = read_workload_selector(spec)
    references = spec.sections("targetRefs")
    if spec.has("targetRef"):
        references.append(spec.section("targetRef"))
    targets = tuple(_read_target(item, meta.namespace) for item in references)
    if targets and spec.has("selector"):
        raise spec.error("targetRefs", "cannot be given together with selector")
    action = spec.choice("action", ACTIONS, "ALLOW")
    provider = ""
    if spec.has("provider"):
        section = spec.section("provider")
        provider = section.required_text("name")
        section.finish()
    rules = tuple(_read_rule(item) for item in spec.sections("rules"))
    spec.finish()
    return AuthorizationPolicy(
        meta, selector, targets, action, rules, provider, _read_dry_run(root, meta)
    )


def _read_dry_run(root: Section, meta: ObjectMeta) -> bool:
    text = meta.annotations.get("istio.io/dry-run", "false")
    if text not in ("true", "false"):
        annotations = root.section("metadata").section("annotations")
        raise annotations.error("istio.io/dry-run", f"must be true or false, not {text!r}")
    return text == "true"


def _read_target(section: Section, namespace: str) -> TargetRef:
    target = TargetRef(
        group=section.text("group"),
        kind=section.required_text("kind"),
        name=section.required_text("name"),
        namespace=section.text("namespace") or namespace,
    )
    if target.namespace != namespace:
        raise section.error("namespace", "must be the namespace of the policy")
    section.finish()
    return target


def _read_rule(section: Section) -> Rule:
    # "from: []" reads as "from nobody" and means "from anybody": too dangerous to guess.
    for name in ("from", "to", "when"):
        if section.has(name) and not section.sections(name):
            raise section.error(name, "must not be an empty list: leave it out to mean anything")
    sources = []
    for item in section.sections("from"):
        sources.append(_read_element(item.required_section("source"), SOURCE_FIELDS))
        item.finish()
    operations = []
    for item in section.sections("to"):
        operations.append(_read_element(item.required_section("operation"), OPERATION_FIELDS))
        item.finish()
    conditions = tuple(_read_condition(item) for item in section.sections("when"))
    section.finish()
    return Rule(section.path, tuple(sources), tuple(operations), conditions)


def _read_element(section: Section, names: tuple[str, ...]) -> Element:
    fields: dict[str, Values] = {}
    for name in names:
        negated = f"not{name[0].upper()}{name[1:]}"
        for field in (name, negated):
            if not section.has(field):
                continue
            values = section.texts(field)
            if not values:
                problem = "must not be an empty list: leave the field out to mean anything"
                raise section.error(field, problem)
            for value in values:
                _check_value(section, field, name, value)
            fields[field] = values
    section.finish()
    if not fields:
        raise ObjectError(section.path, "needs at least one field", section.line)
    return Element(section.path, fields)


def _read_condition(section: Section) -> Condition:
    key = section.required_text("key")
    if not _CONDITION.fullmatch(key):
        raise section.error("key", f"is not a known attribute: {key!r}")
    values = section.texts("values")
    not_values = section.texts("notValues")
    if not values and not not_values:
        raise section.error("values", "values or notValues must be given")
    checked_as = {
        "source.ip": "ipBlocks",
        "remote.ip": "ipBlocks",
        "destination.ip": "ipBlocks",
        "destination.port": "ports",
        "source.serviceAccount": "serviceAccounts",
    }.get(key, "principals")
    for name, given in (("values", values), ("notValues", not_values)):
        for value in given:
            _check_value(section, name, checked_as, value)
    section.finish()
    return Condition(section.path, key, values, not_values)


def _check_value(section: Section, field: str, kind: str, value: str) -> None:
    if not value:
        raise section.error(field, "holds an empty string")
    if "\n" in value:
        raise section.error(field, f"holds a line break: {value!r}")
    if kind in ("ipBlocks", "remoteIpBlocks"):
        read_network(value, section.at(field), section.error(field, "").line)
    elif kind == "ports":
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 65535:
            raise section.error(field, f"is not a port number: {value!r}")
    elif kind == "serviceAccounts":
        if not _SERVICE_ACCOUNT.fullmatch(value):
            raise section.error(field, f"must be name or namespace/name, not {value!r}")
    # Paths have templates of their own ({*}, {**}) and never reach L4.
    elif kind != "paths" and "*" in value[1:-1]:
        raise section.error(field, f"'*' may stand at the begin or the end only: {value!r}")
    elif kind != "paths" and len(value) > 1 and value[0] == value[-1] == "*":
        raise section.error(field, f"'*' may not stand at both ends: {value!r}")
