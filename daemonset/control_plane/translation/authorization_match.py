"""Elements of AuthorizationPolicy rules -> matches of the workload API, and what L4 cannot see."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from daemonset.control_plane.objects.authorization_policy import Condition, Element, Values
from ztunnel.proto.authorization_pb2 import Address, Match, ServiceAccountMatch, StringMatch

PortTargets = Callable[[int], tuple[int, ...] | None]
"""Port of a policy -> ports of the workload, or None where that cannot be said."""

_L4_CONDITIONS = {
    "source.ip": "ipBlocks",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "destination.ip": "destination.ip",
    "destination.port": "ports",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What L4 can check of one element: ``match`` is None where that is nothing at all;
    ``missing`` has the paths of the fields that it cannot check."""

    match: Match | None
    missing: tuple[str, ...]


def same_port(port: int) -> tuple[int, ...]:
    """Policies of workloads speak of the workload's own ports."""
    return (port,)


def check_element(element: Element, namespace: str, targets: PortTargets) -> Checked:
    """A ``source`` or ``operation`` of a policy in ``namespace``."""
    match = Match()
    missing: list[str] = []
    some = False
    for field, values in element.fields.items():
        negated = field.startswith("not")
        name = field[3].lower() + field[4:] if negated else field
        if _put(match, name, values, negated, namespace, targets):
            some = True
        else:
            missing.append(f"{element.path}.{field}")
    return Checked(match if some else None, tuple(missing))


def check_condition(condition: Condition, namespace: str, targets: PortTargets) -> Checked:
    """One ``when`` entry. Of the attributes exactly five are known at L4."""
    name = _L4_CONDITIONS.get(condition.key)
    if name is None:
        return Checked(None, (f"{condition.path}.key",))
    match = Match()
    missing: list[str] = []
    some = False
    for field, values in (("values", condition.values), ("notValues", condition.not_values)):
        if not values:
            continue
        if _put(match, name, values, field == "notValues", namespace, targets):
            some = True
        else:
            missing.append(f"{condition.path}.{field}")
    return Checked(match if some else None, tuple(missing))


def _put(
    match: Match, name: str, values: Values, negated: bool, namespace: str, targets: PortTargets
) -> bool:
    """Write one field into the match; False where L4 cannot check it."""
    match name:
        case "principals":
            (match.not_principals if negated else match.principals).extend(_strings(values))
        case "namespaces":
            (match.not_namespaces if negated else match.namespaces).extend(_strings(values))
        case "ipBlocks":
            (match.not_source_ips if negated else match.source_ips).extend(_blocks(values))
        case "destination.ip":
            (match.not_destination_ips if negated else match.destination_ips).extend(
                _blocks(values)
            )
        case "serviceAccounts":
            (match.not_service_accounts if negated else match.service_accounts).extend(
                _service_accounts(values, namespace)
            )
        case "ports":
            found = [targets(int(value)) for value in values]
            if None in found:
                return False
            ports = sorted({port for group in found if group is not None for port in group})
            (match.not_destination_ports if negated else match.destination_ports).extend(ports)
        case _:
            return False
    return True


def _strings(values: Values) -> Iterable[StringMatch]:
    for value in values:
        message = StringMatch()
        if value == "*":
            message.presence.SetInParent()
        elif value.startswith("*"):
            message.suffix = value[1:]
        elif value.endswith("*"):
            message.prefix = value[:-1]
        else:
            message.exact = value
        yield message


def _blocks(values: Values) -> Iterable[Address]:
    for value in values:
        block = ipaddress.ip_network(value, strict=False)
        yield Address(address=block.network_address.packed, length=block.prefixlen)


def _service_accounts(values: Values, namespace: str) -> Iterable[ServiceAccountMatch]:
    for value in values:
        owner, slash, name = value.partition("/")
        yield (
            ServiceAccountMatch(namespace=owner, service_account=name)
            if slash
            else ServiceAccountMatch(namespace=namespace, service_account=value)
        )
