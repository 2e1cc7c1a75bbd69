"""Policies of the workload API: nothing of them may get lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.empty_pb2 import Empty

from tests.support.to_proto import authorization_to_proto
from tests.ztunnel.mesh.builders import identity, mesh, pod
from ztunnel.mesh.authorize import ConnectionAttributes, authorize
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.from_proto import authorization_from_proto
from ztunnel.mesh.policy import Authorization, PolicyAction, PolicyScope, StringMatchKind
from ztunnel.proto import authorization_pb2 as pb
from ztunnel.proto.workload_pb2 import Extension

WEB = pod("web", "10.0.0.11")


def message(match: pb.Match, **fields: object) -> pb.Authorization:
    group = pb.Group(rules=[pb.Rules(matches=[match])])
    made = pb.Authorization(name="p", namespace="shop", scope=pb.NAMESPACE, groups=[group])
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def refused(made: pb.Authorization | bytes) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        authorization_from_proto(made)
    return caught.value


@pytest.mark.parametrize(
    ("match", "field"),
    [
        (pb.Match(principals=[pb.StringMatch()]), "principals"),
        (pb.Match(not_principals=[pb.StringMatch()]), "not_principals"),
        (pb.Match(namespaces=[pb.StringMatch(exact="")]), "namespaces"),
        (pb.Match(not_namespaces=[pb.StringMatch(prefix="")]), "not_namespaces"),
        (pb.Match(principals=[pb.StringMatch(suffix="")]), "principals"),
        (pb.Match(source_ips=[pb.Address(address=b"123", length=8)]), "source_ips"),
        (pb.Match(source_ips=[pb.Address()]), "source_ips"),
        (pb.Match(not_source_ips=[pb.Address(address=bytes(4), length=33)]), "not_source_ips"),
        (pb.Match(destination_ips=[pb.Address(address=b"\x0a\0\0\1")]), "destination_ips"),
        (
            pb.Match(not_destination_ips=[pb.Address(address=bytes(16), length=129)]),
            "not_destination_ips",
        ),
        (pb.Match(destination_ports=[65536 + 8080]), "destination_ports"),
        (pb.Match(not_destination_ports=[0]), "not_destination_ports"),
        (
            pb.Match(service_accounts=[pb.ServiceAccountMatch(service_account="a")]),
            "service_accounts",
        ),
        (
            pb.Match(not_service_accounts=[pb.ServiceAccountMatch(namespace="a")]),
            "not_service_accounts",
        ),
        (pb.Match(extensions=[Extension(name="x")]), "extensions"),
    ],
)
def test_a_value_that_cannot_be_read_refuses_the_policy_and_denies(
    match: pb.Match, field: str
) -> None:
    match.destination_ports.append(8080)
    error = refused(message(match))
    assert error.name == "shop/p"
    assert error.reason.startswith(f"groups[0].rules[0].matches[0].{field}: ")
    # Had the field only been dropped, everybody could use port 8080.
    assert error.fallback is not None
    connection = ConnectionAttributes("10.0.0.1", identity("x"), "10.0.0.11", 8080)
    verdict = authorize(mesh(WEB, error.fallback), WEB, connection)
    assert not verdict.allowed
    assert error.reason in verdict.reason


def add_unknown(path: Callable[[pb.Authorization], object]) -> pb.Authorization:
    made = message(
        pb.Match(
            principals=[pb.StringMatch(exact="a")],
            source_ips=[pb.Address(address=bytes(4), length=8)],
            service_accounts=[pb.ServiceAccountMatch(namespace="a", service_account="b")],
        )
    )
    path(made).MergeFromString(b"\xc2\x3e\x01x")  # type: ignore[attr-defined]  # field 1000
    return made


@pytest.mark.parametrize(
    "path",
    [
        lambda made: made.groups[0],
        lambda made: made.groups[0].rules[0],
        lambda made: made.groups[0].rules[0].matches[0],
        lambda made: made.groups[0].rules[0].matches[0].principals[0],
        lambda made: made.groups[0].rules[0].matches[0].source_ips[0],
        lambda made: made.groups[0].rules[0].matches[0].service_accounts[0],
    ],
)
def test_a_condition_of_a_newer_api_does_not_vanish(
    path: Callable[[pb.Authorization], object],
) -> None:
    error = refused(add_unknown(path).SerializeToString())
    assert "a condition that is not known to this version" in error.reason


def test_unknown_fields_beside_the_conditions_are_harmless() -> None:
    assert authorization_from_proto(add_unknown(lambda made: made)).name == "p"


def test_the_fallback_keeps_scope_and_dry_run() -> None:
    broken = pb.Match(destination_ports=[0])
    found = refused(message(broken, scope=pb.GLOBAL, dry_run=True)).fallback
    assert found is not None
    assert (found.scope, found.dry_run) == (PolicyScope.GLOBAL, True)
    assert found.action is PolicyAction.DENY
    with pytest.raises(ValueError, match="could not be read"):
        authorization_to_proto(found)


def test_unknown_scopes_and_actions_are_refused() -> None:
    error = refused(message(pb.Match(), scope=9))
    assert error.reason == "scope: value 9 is not known to this version"
    assert error.fallback is not None
    assert error.fallback.scope is PolicyScope.NAMESPACE
    assert "action: value 9" in refused(message(pb.Match(), action=9)).reason


def test_without_a_name_nothing_can_stand_in() -> None:
    assert refused(pb.Authorization()).fallback is None
    assert refused(b"\xff\xff").fallback is None


def test_addresses_may_have_bits_behind_their_prefix() -> None:
    match = pb.Match(source_ips=[pb.Address(address=b"\x0a\x01\x02\x03", length=8)])
    policy = authorization_from_proto(message(match))
    assert str(policy.rules[0][0][0].source_ips[0]) == "10.0.0.0/8"


def test_everybody_can_be_written() -> None:
    match = pb.Match(source_ips=[pb.Address(address=bytes(4), length=0)])
    policy = authorization_from_proto(message(match))
    assert str(policy.rules[0][0][0].source_ips[0]) == "0.0.0.0/0"


def test_presence() -> None:
    match = pb.Match(principals=[pb.StringMatch(presence=Empty())])
    policy = authorization_from_proto(message(match))
    assert policy.rules[0][0][0].principals[0].kind is StringMatchKind.PRESENCE


def test_structure_is_kept_with_its_empties() -> None:
    made = pb.Authorization(
        name="p",
        groups=[pb.Group(), pb.Group(rules=[pb.Rules(), pb.Rules(matches=[pb.Match()])])],
    )
    policy = authorization_from_proto(made)
    assert isinstance(policy, Authorization)
    assert [len(one) for one in policy.rules] == [0, 2]
    assert [len(clause) for clause in policy.rules[1]] == [0, 1]
