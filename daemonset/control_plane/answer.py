"""Pure: the answer to ``ambient why`` in lines for people, from whatever state there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from daemonset.control_plane.explanation import (
    UnknownNameError,
    Way,
    explain,
    find_targets,
    find_workload,
)
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.peer_authentication import MutualTLSMode
from daemonset.control_plane.translation.peer_authentication import CONVERTED, STATIC_STRICT
from daemonset.control_plane.translation.translate import Translation
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.from_proto import address_from_proto
from ztunnel.mesh.policy_from_proto import authorization_from_proto
from ztunnel.mesh.state import MeshState
from ztunnel.proto.authorization_pb2 import Authorization
from ztunnel.proto.workload_pb2 import Address

ALLOWED, REFUSED, UNKNOWN = 0, 1, 2
"""Exit statuses: every way is allowed, some way is not, the question has no answer."""

_POLICY = "AuthorizationPolicy"

Place = Callable[[ObjectKey, str], str]
"""Where a field of an object stands, for people."""


def answer(
    state: MeshState,
    objects: ObjectSet,
    place: Place,
    source: str,
    destination: str,
    port: int | None,
) -> tuple[int, list[str]]:
    """Exit status and lines.

    Args:
        objects: what ``state`` was made from, as far as it is known.
    """
    try:
        client = find_workload(state, source)
        targets = find_targets(state, client, destination, port)
    except UnknownNameError as error:
        return UNKNOWN, [f"{error}"]
    lines: list[str] = []
    allowed = True
    for target in targets:
        ways = explain(state, client, target)
        allowed = allowed and all(way.allowed for way in ways)
        where = f"[{target.address}]" if ":" in target.address else target.address
        lines.append(
            f"{client.namespace}/{client.name} → {target.name}, {where}:{target.port}:"
            f" {_outcome(ways)}"
        )
        for way in ways:
            lines += _in_words(way, objects, place)
    return (ALLOWED if allowed else REFUSED), lines


def state_of(translation: Translation) -> MeshState:
    """What ztunnels would know."""
    return mesh_state(
        (Address.FromString(one.payload) for one in translation.addresses.values()),
        (Authorization.FromString(one.payload) for one in translation.authorizations.values()),
    )


def mesh_state(addresses: Iterable[Address], policies: Iterable[Authorization]) -> MeshState:
    """What ztunnels know that have been told this."""
    state = MeshState()
    resources: list[Resource] = [address_from_proto(one) for one in addresses]
    resources += [authorization_from_proto(one) for one in policies]
    state.apply(Batch(resources))
    return state


def _outcome(ways: Iterable[Way]) -> str:
    allowed = {way.allowed for way in ways}
    if allowed == {True}:
        return "allowed"
    return "REFUSED" if allowed == {False} else "depends on the endpoint"


def _in_words(way: Way, objects: ObjectSet, place: Place) -> list[str]:
    mark = "✓" if way.allowed else "✗"
    lines = [f"    {step}" for step in way.steps[:-1]]
    lines.append(f"  {mark} {way.steps[-1]}")
    for policy in way.policies:
        for key in _written_as(policy, objects):
            field = f"spec.rules[{way.rule - 1}]" if key.kind == _POLICY and way.rule else ""
            lines.append(f"      {key}: {place(key, field)}")
    return lines


def _written_as(policy: str, objects: ObjectSet) -> list[ObjectKey]:
    """The objects that a policy in force was made from."""
    namespace, _, name = policy.partition("/")
    if name == STATIC_STRICT:
        return [
            one.meta.key
            for one in objects.peer_authentications.values()
            if one.mode is MutualTLSMode.STRICT
        ]
    if name.startswith(CONVERTED):
        return [ObjectKey("PeerAuthentication", namespace, name.removeprefix(CONVERTED))]
    return [ObjectKey(_POLICY, namespace, name)]
