"""The policies of a local document; see `local_file`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ztunnel.mesh.address import IPNetwork, parse_network
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.yaml_reader import Field, Fields

_Value = TypeVar("_Value")

_SCOPES = {scope.value: scope for scope in PolicyScope}
_ACTIONS = {action.value: action for action in PolicyAction}
_KINDS = {kind.value: kind for kind in StringMatchKind}
_REQUIRED = ("name", "namespace", "scope", "action", "rules")
_MATCH = (
    "namespaces", "principals", "serviceAccounts", "sourceIps", "destinationIps",
    "destinationPorts",
)  # fmt: skip
_NOT_MATCH = tuple(f"not{name[0].upper()}{name[1:]}" for name in _MATCH)


def read_policy(field: Field) -> Authorization:
    """One policy.

    Raises:
        LocalFileError: with file, line and field.
    """
    fields = field.fields({*_REQUIRED, "dryRun"}, _REQUIRED)
    return Authorization(
        name=fields["name"].text(),
        namespace=fields["namespace"].text(),
        scope=fields["scope"].choice(_SCOPES),
        action=fields["action"].choice(_ACTIONS),
        rules=tuple(
            tuple(tuple(_match(match) for match in clause.items()) for clause in rule.items())
            for rule in fields["rules"].items()
        ),
        dry_run=fields.boolean("dryRun"),
    )


def _match(field: Field) -> Match:
    fields = field.fields({*_MATCH, *_NOT_MATCH})
    return Match(
        namespaces=_each(fields, "namespaces", _text),
        not_namespaces=_each(fields, "notNamespaces", _text),
        principals=_each(fields, "principals", _principal),
        not_principals=_each(fields, "notPrincipals", _principal),
        service_accounts=_each(fields, "serviceAccounts", _account),
        not_service_accounts=_each(fields, "notServiceAccounts", _account),
        source_ips=_each(fields, "sourceIps", _network),
        not_source_ips=_each(fields, "notSourceIps", _network),
        destination_ips=_each(fields, "destinationIps", _network),
        not_destination_ips=_each(fields, "notDestinationIps", _network),
        destination_ports=_each(fields, "destinationPorts", _port),
        not_destination_ports=_each(fields, "notDestinationPorts", _port),
    )


def _each(fields: Fields, name: str, read: Callable[[Field], _Value]) -> tuple[_Value, ...]:
    return tuple(read(field) for field in fields.items(name))


def _text(field: Field) -> StringMatch:
    """`!Exact x`, `!Prefix x`, `!Suffix x`, `!Presence`; JSON writes {"Exact": "x"}."""
    if field.is_mapping and not field.custom_tag:
        pairs = list(field.pairs())
        if len(pairs) != 1:
            raise field.error(f"one of {', '.join(_KINDS)} is expected")
        kind, value = pairs[0][0].choice(_KINDS), pairs[0][1].text()
    else:
        text = field.text()
        name = field.custom_tag or (text if text == StringMatchKind.PRESENCE.value else "")
        if name not in _KINDS:
            raise field.error(f"a text tagged with one of !{', !'.join(_KINDS)} is expected")
        kind, value = _KINDS[name], text
    if kind is StringMatchKind.PRESENCE:
        return StringMatch(kind)
    if not value:
        raise field.error(f"an empty {kind.value} value is met by nobody or everybody")
    return StringMatch(kind, value)


def _principal(field: Field) -> StringMatch:
    match = _text(field)
    if match.value.startswith("spiffe://"):
        raise field.error("principals are written without spiffe://")
    return match


def _account(field: Field) -> ServiceAccountMatch:
    names = ("namespace", "serviceAccount")
    fields = field.fields(names, names)
    account = ServiceAccountMatch(fields["namespace"].text(), fields["serviceAccount"].text())
    if not account.namespace or not account.service_account:
        raise field.error("a service account needs a namespace and a name")
    return account


def _network(field: Field) -> IPNetwork:
    text = field.text()
    try:
        return parse_network(text)
    except ValueError as error:
        raise field.error(str(error)) from None


def _port(field: Field) -> int:
    return field.integer(1, 65535)
