"""A control plane that tells of workloads before it tells of their policies, as istiod does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio
import trio.testing

from tests.support.to_proto import authorization_to_proto, workload_to_proto
from tests.ztunnel.mesh.builders import allow, pod
from ztunnel.mesh.changes import Batch
from ztunnel.mesh.policy import Authorization
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.process.ahead import GRACE
from ztunnel.process.mesh_feed import ADDRESS_TYPE, AUTHORIZATION_TYPE, MeshFeed
from ztunnel.proto import workload_pb2

WEB = pod("web", "10.0.0.1", services={})
OLD, NEW = allow("old"), allow("new")


def naming(*policies: Authorization, workload: Workload = WEB) -> Workload:
    return replace(workload, authorization_policies=tuple(policy.key for policy in policies))


class Told:
    """A feed, and what it has in force."""

    def __init__(self, *known: Workload | Authorization) -> None:
        self.state = MeshState()
        self.state.apply(Batch(list(known), (), ()))
        self.feed = MeshFeed(self.state, list)

    async def workloads(self, *workloads: Workload, removed: Sequence[str] = ()) -> None:
        encoded = [
            (one.uid, workload_pb2.Address(workload=workload_to_proto(one)).SerializeToString())
            for one in workloads
        ]
        assert not await self.feed.apply_encoded(ADDRESS_TYPE, encoded, removed)

    async def policies(self, *policies: Authorization, removed: Sequence[str] = ()) -> None:
        encoded = [(one.key, authorization_to_proto(one).SerializeToString()) for one in policies]
        assert not await self.feed.apply_encoded(AUTHORIZATION_TYPE, encoded, removed)

    def named(self) -> tuple[str, ...]:
        found = self.state.workload(WEB.uid)
        assert found is not None
        return found.authorization_policies


async def test_what_a_workload_had_stays_until_its_new_policy_is_there() -> None:
    told = Told(OLD, naming(OLD))
    await told.workloads(replace(naming(OLD, NEW), node="elsewhere"))
    assert told.named() == (OLD.key,)
    found = told.state.workload(WEB.uid)
    assert found is not None
    assert found.node == "elsewhere"  # whatever else is new of it holds at once
    await told.policies(NEW)
    assert told.named() == (OLD.key, NEW.key)
    assert not told.feed.waits_for_policies


async def test_a_policy_that_takes_the_place_of_another() -> None:
    told = Told(OLD, naming(OLD))
    await told.workloads(naming(NEW))
    assert told.named() == (OLD.key,)
    await told.policies(NEW, removed=[OLD.key])
    assert told.named() == (NEW.key,)


async def test_all_that_it_names_must_be_there() -> None:
    told = Told(naming())
    await told.workloads(naming(OLD, NEW))
    await told.policies(OLD)
    assert told.named() == ()
    await told.policies(NEW)
    assert told.named() == (OLD.key, NEW.key)


async def test_a_policy_that_does_not_come_is_not_waited_for_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told(naming())
    await told.workloads(naming(NEW))
    await told.feed.settle()
    assert told.named() == ()
    await trio.sleep(GRACE)
    await told.feed.settle()
    assert told.named() == (NEW.key,)  # and so it denies
    assert not told.feed.waits_for_policies


async def test_what_is_new_or_takes_a_policy_away_does_not_wait() -> None:
    told = Told(OLD)
    await told.workloads(naming(NEW))
    assert told.named() == (NEW.key,)
    assert not told.feed.waits_for_policies
    told = Told(OLD, NEW, naming(OLD, NEW))
    await told.workloads(naming(NEW))
    assert told.named() == (NEW.key,)
    assert not told.feed.waits_for_policies


async def test_the_last_word_counts() -> None:
    told = Told(naming())
    await told.workloads(naming(NEW))
    await told.workloads(naming())
    await told.policies(NEW)
    assert told.named() == ()
    await told.workloads(naming(OLD))
    await told.workloads(removed=[WEB.uid])
    assert not told.feed.waits_for_policies
    await told.policies(OLD)
    assert told.state.workload(WEB.uid) is None
