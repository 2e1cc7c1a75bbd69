"""Authorization policies of the workload API into `policy.Authorization`.

Strict for the same reason as `from_proto`: of a policy nothing may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ztunnel.mesh.address import IPNetwork, network_from_bytes
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.policy import (
    Authorization,
    Clause,
    Match,
    PolicyAction,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.proto import authorization_pb2 as pb

_SCOPES: Mapping[int, PolicyScope] = {
    pb.Scope.GLOBAL: PolicyScope.GLOBAL,
    pb.Scope.NAMESPACE: PolicyScope.NAMESPACE,
    pb.Scope.WORKLOAD_SELECTOR: PolicyScope.WORKLOAD_SELECTOR,
}
_ACTIONS: Mapping[int, PolicyAction] = {
    pb.Action.ALLOW: PolicyAction.ALLOW,
    pb.Action.DENY: PolicyAction.DENY,
}


class _Unreadable(ValueError):
    """A field that cannot be understood."""


def authorization_from_proto(raw: bytes | pb.Authorization) -> Authorization:
    """A policy.

    Raises:
        ResourceError: not such a message, or something in it cannot be understood. When its
            name can be, the error carries a `fallback` that denies in the policy's scope (in
            its namespace, when the scope itself is unknown).
    """
    if isinstance(raw, bytes):
        try:
            message = pb.Authorization.FromString(raw)
        except DecodeError as error:
            raise ResourceError("?", f"not an Authorization message: {error}") from None
    else:
        message = raw
    key = f"{message.namespace}/{message.name}"
    if not message.name:
        raise ResourceError(key, "name: a policy without name")
    try:
        return _authorization(message)
    except _Unreadable as error:
        fallback = Authorization(
            message.name,
            message.namespace,
            _SCOPES.get(message.scope, PolicyScope.NAMESPACE),
            PolicyAction.DENY,
            dry_run=message.dry_run,
            unreadable=str(error),
        )
        raise ResourceError(key, str(error), fallback) from None


def _authorization(message: pb.Authorization) -> Authorization:
    scope = _SCOPES.get(message.scope)
    if scope is None:
        raise _Unreadable(f"scope: value {message.scope} is not known to this version")
    action = _ACTIONS.get(message.action)
    if action is None:
        raise _Unreadable(f"action: value {message.action} is not known to this version")
    rules = tuple(_rule(f"groups[{number}]", group) for number, group in enumerate(message.groups))
    return Authorization(message.name, message.namespace, scope, action, rules, message.dry_run)


def _complete(where: str, message: Message) -> None:
    """A condition of a newer version of the API must not vanish: without it more would match."""
    if len(UnknownFieldSet(message)):
        raise _Unreadable(f"{where}: a condition that is not known to this version")


def _rule(where: str, group: pb.Group) -> Rule:
    _complete(where, group)
    return tuple(
        _clause(f"{where}.rules[{number}]", rules) for number, rules in enumerate(group.rules)
    )


def _clause(where: str, rules: pb.Rules) -> Clause:
    _complete(where, rules)
    return tuple(
        _match(f"{where}.matches[{number}]", match) for number, match in enumerate(rules.matches)
    )


def _match(where: str, match: pb.Match) -> Match:
    _complete(where, match)
    if match.extensions:
        names = ", ".join(extension.name for extension in match.extensions)
        raise _Unreadable(f"{where}.extensions: {names} is not known to this version")
    return Match(
        namespaces=_texts(f"{where}.namespaces", match.namespaces),
        not_namespaces=_texts(f"{where}.not_namespaces", match.not_namespaces),
        principals=_texts(f"{where}.principals", match.principals),
        not_principals=_texts(f"{where}.not_principals", match.not_principals),
        service_accounts=_accounts(f"{where}.service_accounts", match.service_accounts),
        not_service_accounts=_accounts(f"{where}.not_service_accounts", match.not_service_accounts),
        source_ips=_networks(f"{where}.source_ips", match.source_ips),
        not_source_ips=_networks(f"{where}.not_source_ips", match.not_source_ips),
        destination_ips=_networks(f"{where}.destination_ips", match.destination_ips),
        not_destination_ips=_networks(f"{where}.not_destination_ips", match.not_destination_ips),
        destination_ports=_ports(f"{where}.destination_ports", match.destination_ports),
        not_destination_ports=_ports(f"{where}.not_destination_ports", match.not_destination_ports),
    )


def _texts(where: str, matches: Iterable[pb.StringMatch]) -> tuple[StringMatch, ...]:
    return tuple(_text(where, match) for match in matches)


def _text(where: str, match: pb.StringMatch) -> StringMatch:
    _complete(where, match)
    kind = match.WhichOneof("match_type")
    if kind == "presence":
        return StringMatch(StringMatchKind.PRESENCE)
    if kind == "exact":
        found = StringMatch(StringMatchKind.EXACT, match.exact)
    elif kind == "prefix":
        found = StringMatch(StringMatchKind.PREFIX, match.prefix)
    elif kind == "suffix":
        found = StringMatch(StringMatchKind.SUFFIX, match.suffix)
    else:
        raise _Unreadable(f"{where}: a match with no value set, or of an unknown kind")
    if not found.value:
        raise _Unreadable(f"{where}: an empty {kind} value, which is met by nobody or everybody")
    return found


def _accounts(
    where: str, matches: Iterable[pb.ServiceAccountMatch]
) -> tuple[ServiceAccountMatch, ...]:
    return tuple(_account(where, match) for match in matches)


def _account(where: str, match: pb.ServiceAccountMatch) -> ServiceAccountMatch:
    _complete(where, match)
    if not match.namespace or not match.service_account:
        raise _Unreadable(f"{where}: a service account without namespace or name")
    return ServiceAccountMatch(match.namespace, match.service_account)


def _networks(where: str, addresses: Iterable[pb.Address]) -> tuple[IPNetwork, ...]:
    return tuple(_network(where, address) for address in addresses)


def _network(where: str, address: pb.Address) -> IPNetwork:
    _complete(where, address)
    try:
        network = network_from_bytes(address.address, address.length)
    except ValueError as error:
        raise _Unreadable(f"{where}: {error}") from None
    if address.length == 0 and any(address.address):
        # Length 0 is also what an absent length looks like; taken as such it would be everybody.
        raise _Unreadable(f"{where}: an address without prefix length")
    return network


def _ports(where: str, ports: Iterable[int]) -> tuple[int, ...]:
    return tuple(_port(where, port) for port in ports)


def _port(where: str, port: int) -> int:
    if not 0 < port <= 65535:
        raise _Unreadable(f"{where}: {port} is not a port")
    return port
