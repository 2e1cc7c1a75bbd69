"""The delta protocol's state machine, step by step and against a model of a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ztunnel.xds.protocol import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    Answer,
    DeltaState,
    Outcome,
    Rejection,
    Request,
    Resource,
    Response,
    nack_message,
)


def resource(
    name: str, version: str = "1", *aliases: str, type_url: str = ADDRESS_TYPE
) -> Resource:
    return Resource(name, version, aliases, type_url, b"")


def receive(
    state: DeltaState,
    *resources: Resource,
    removed: tuple[str, ...] = (),
    rejections: tuple[Rejection, ...] = (),
    type_url: str = ADDRESS_TYPE,
) -> Answer:
    update = state.receive(Response(type_url, "n", resources, removed))
    return state.finish(update, rejections)


def on_demand() -> DeltaState:
    return DeltaState({ADDRESS_TYPE: False})


def wildcard() -> DeltaState:
    return DeltaState({ADDRESS_TYPE: True})


def test_a_stream_begins_with_one_request_for_each_type() -> None:
    state = DeltaState({ADDRESS_TYPE: False, AUTHORIZATION_TYPE: True})
    assert state.start() == [
        Request(ADDRESS_TYPE, ("*",), ("*",)),
        Request(AUTHORIZATION_TYPE),
    ]


def test_an_ack_carries_the_nonce_and_nothing_else() -> None:
    answer = receive(wildcard(), resource("a"))
    assert answer.request == Request(ADDRESS_TYPE, nonce="n")
    assert answer.rejections == ()


def test_a_nack_names_what_was_refused_and_the_rest_is_in_force() -> None:
    state = wildcard()
    answer = receive(
        state, resource("a"), resource("b"), rejections=(Rejection("b", "no address"),)
    )
    assert answer.request == Request(ADDRESS_TYPE, nonce="n", error="b: no address")
    assert state.start()[0].initial_versions == {"a": "1", "b": ""}
    assert state.warm


def test_what_was_refused_is_sent_again_even_if_an_earlier_version_was_good() -> None:
    state = wildcard()
    receive(state, resource("a", "1"))
    receive(state, resource("a", "2"), rejections=(Rejection("a", "x"),))
    assert state.start()[0].initial_versions == {"a": ""}


def test_an_unknown_type_is_refused() -> None:
    state = wildcard()
    answer = receive(state, resource("a", type_url="t"), type_url="t")
    assert answer.request == Request("t", nonce="n", error="t: this type was not subscribed to")
    assert not state.warm


def test_resources_without_name_or_of_another_type_never_reach_the_handler() -> None:
    state = wildcard()
    update = state.receive(
        Response(
            ADDRESS_TYPE,
            "n",
            (resource(""), resource("a", type_url="t"), resource("b", type_url=""), resource("c")),
        )
    )
    assert [one.name for one in update.resources] == ["c"]
    assert state.finish(update).request.error == (
        "(unnamed): a resource needs a name; a: has the type t; b: has the type of an empty message"
    )
    assert state.start()[0].initial_versions == {"c": "1"}


def test_removals_are_known_after_reconnecting() -> None:
    state = wildcard()
    receive(state, resource("a"), resource("b"))
    receive(state, removed=("a", "never"))
    assert state.start()[0].initial_versions == {"b": "1"}
    assert state.count(ADDRESS_TYPE) == 1


def test_a_resource_that_is_both_sent_and_removed_is_sent() -> None:
    state = wildcard()
    update = state.receive(Response(ADDRESS_TYPE, "n", (resource("a"),), ("a", "b", "b")))
    assert update.removed == ("b",)


def test_warm_needs_every_wildcard_type() -> None:
    state = DeltaState({ADDRESS_TYPE: True, AUTHORIZATION_TYPE: True})
    warm = []
    for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
        receive(state, type_url=type_url)
        warm.append(state.warm)
    assert warm == [False, True]
    assert DeltaState({ADDRESS_TYPE: False}).warm


def test_an_address_is_settled_by_a_workload_that_has_it_as_alias() -> None:
    state = on_demand()
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") == Request(ADDRESS_TYPE, ("/10.0.0.1",))
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is None
    answer = receive(state, resource("uid", "1", "/10.0.0.1"))
    assert answer.settled == {"/10.0.0.1": Outcome.FOUND}
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.FOUND
    assert state.demand(ADDRESS_TYPE, "uid") is Outcome.FOUND


def test_absence_is_told_by_removal_and_later_presence_by_a_push() -> None:
    state = on_demand()
    state.demand(ADDRESS_TYPE, "/10.0.0.1")
    assert receive(state, removed=("/10.0.0.1",)).settled == {"/10.0.0.1": Outcome.ABSENT}
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.ABSENT
    receive(state, resource("uid", "1", "/10.0.0.1"))
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.FOUND
    receive(state, removed=("uid",))
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.ABSENT


def test_a_refused_answer_settles_too() -> None:
    state = on_demand()
    state.demand(ADDRESS_TYPE, "/10.0.0.1")
    answer = receive(
        state, resource("uid", "1", "/10.0.0.1"), rejections=(Rejection("uid", "bad"),)
    )
    assert answer.settled == {"/10.0.0.1": Outcome.REJECTED}
    state.demand(ADDRESS_TYPE, "other")
    assert receive(state, resource("other", type_url="t")).settled == {"other": Outcome.REJECTED}


def test_two_workloads_may_share_an_address() -> None:
    state = on_demand()
    state.demand(ADDRESS_TYPE, "/10.0.0.1")
    receive(state, resource("a", "1", "/10.0.0.1"), resource("b", "1", "/10.0.0.1"))
    receive(state, removed=("b",))
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.FOUND
    receive(state, resource("a", "2", "/10.0.0.2", "/10.0.0.2"))
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.ABSENT
    assert state.demand(ADDRESS_TYPE, "/10.0.0.2") is Outcome.FOUND


def test_what_is_known_stays_known_while_the_control_plane_is_away() -> None:
    state = on_demand()
    for key in ("/10.0.0.1", "/10.0.0.2", "/10.0.0.3"):
        state.demand(ADDRESS_TYPE, key)
    receive(state, resource("uid", "7", "/10.0.0.1"), removed=("/10.0.0.2",))
    assert state.start() == [
        Request(ADDRESS_TYPE, ("*", "/10.0.0.1", "/10.0.0.2", "/10.0.0.3"), ("*",), {"uid": "7"})
    ]
    assert state.demand(ADDRESS_TYPE, "/10.0.0.1") is Outcome.FOUND
    assert state.demand(ADDRESS_TYPE, "/10.0.0.2") is Outcome.ABSENT
    assert state.demand(ADDRESS_TYPE, "/10.0.0.3") is None


def test_a_question_that_nobody_waits_for_is_taken_back() -> None:
    state = on_demand()
    state.demand(ADDRESS_TYPE, "a")
    assert state.release(ADDRESS_TYPE, "a") == Request(ADDRESS_TYPE, unsubscribe=("a",))
    assert state.release(ADDRESS_TYPE, "a") is None
    state.demand(ADDRESS_TYPE, "a")
    receive(state, removed=("a",))
    assert state.release(ADDRESS_TYPE, "a") is None


def test_keys_without_a_resource_do_not_pile_up() -> None:
    state = DeltaState({ADDRESS_TYPE: False}, absent_limit=8)
    dropped: tuple[str, ...] = ()
    for number in range(9):
        state.demand(ADDRESS_TYPE, str(number))
        dropped += receive(state, removed=(str(number),)).request.unsubscribe
    assert dropped == ("0", "1", "2")
    assert state.demand(ADDRESS_TYPE, "0") == Request(ADDRESS_TYPE, ("0",))
    assert state.demand(ADDRESS_TYPE, "8") is Outcome.ABSENT


def test_demands_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="not subscribed to on demand"):
        wildcard().demand(ADDRESS_TYPE, "a")
    for key in ("", "*"):
        with pytest.raises(ValueError, match="is not the name of a resource"):
            on_demand().demand(ADDRESS_TYPE, key)


def test_long_lists_of_rejections_are_cut() -> None:
    message = nack_message([Rejection(str(n), "bad") for n in range(25)])
    assert message.startswith("0: bad; 1: bad; ")
    assert message.endswith("19: bad; and 5 more")


NAMES = st.sampled_from(["a", "b", "c", "d"])
ALIASES = st.sampled_from(["x", "y", "z"])


class AgainstServer(RuleBasedStateMachine):
    """A server that follows the protocol, a client that loses its stream now and then, and a
    handler that refuses now and then: in the end the client holds what the server has."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: dict[str, Resource] = {}
        self.state = on_demand()
        self.applied: dict[str, Resource] = {}
        self.version = 0
        self.subscribed: set[str] = set()
        self.sent: dict[str, str] = {}
        self.connect()

    def connect(self) -> None:
        (request,) = self.state.start()
        self.subscribed = set(request.subscribe) - {"*"}
        self.sent = dict(request.initial_versions)
        self.push(self.subscribed)

    def push(self, asked: set[str]) -> None:
        """Sends what changed among what the client watches, and answers what it asks for."""
        watched = self.subscribed | self.sent.keys()
        fresh = [
            one
            for one in self.wanted.values()
            if watched & {one.name, *one.aliases} and self.sent.get(one.name) != one.version
        ]
        asked_for = [one for one in self.wanted.values() if asked & {one.name, *one.aliases}]
        gone = [name for name in self.sent if name not in self.wanted]
        present = {key for one in self.wanted.values() for key in (one.name, *one.aliases)}
        absent = sorted(asked - present)
        self.deliver({one.name: one for one in fresh + asked_for}, (*gone, *absent), refused=set())

    def deliver(
        self, resources: dict[str, Resource], removed: tuple[str, ...], refused: set[str]
    ) -> None:
        update = self.state.receive(Response(ADDRESS_TYPE, "n", tuple(resources.values()), removed))
        for name in update.removed:
            self.applied.pop(name, None)
            self.sent.pop(name, None)
        for one in update.resources:
            self.sent[one.name] = one.version
            if one.name not in refused:
                self.applied[one.name] = one
        rejections = [Rejection(name, "no") for name in refused]
        self.state.finish(update, rejections)

    @rule(name=NAMES, aliases=st.lists(ALIASES, unique=True, max_size=2))
    def change(self, name: str, aliases: list[str]) -> None:
        self.version += 1
        self.wanted[name] = resource(name, str(self.version), *aliases)
        self.push(set())

    @rule(name=NAMES)
    def refuse(self, name: str) -> None:
        if name in self.sent and name in self.wanted:
            self.version += 1
            self.wanted[name] = resource(name, str(self.version), *self.wanted[name].aliases)
            self.deliver({name: self.wanted[name]}, (), {name})
            self.connect()

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if self.wanted.pop(name, None) is not None:
            self.push(set())

    @rule(key=NAMES | ALIASES)
    def ask(self, key: str) -> None:
        answer = self.state.demand(ADDRESS_TYPE, key)
        if isinstance(answer, Request):
            self.subscribed |= set(answer.subscribe)
            self.push(set(answer.subscribe))

    @rule()
    def reconnect(self) -> None:
        self.connect()

    @invariant()
    def holds_what_the_server_has(self) -> None:
        for name, one in self.applied.items():
            assert self.wanted.get(name) == one
        for key in self.subscribed:
            present = any(key in (one.name, *one.aliases) for one in self.wanted.values())
            expected = Outcome.FOUND if present else Outcome.ABSENT
            assert self.state.demand(ADDRESS_TYPE, key) is expected


TestAgainstServer = AgainstServer.TestCase
TestAgainstServer.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

texts = st.text(max_size=3)


@given(
    st.lists(
        st.builds(
            Response,
            st.sampled_from([ADDRESS_TYPE, "t", ""]),
            texts,
            st.lists(
                st.builds(
                    Resource,
                    texts,
                    texts,
                    st.lists(texts, max_size=3).map(tuple),
                    st.sampled_from([ADDRESS_TYPE, "t", ""]),
                    st.binary(max_size=3),
                ),
                max_size=4,
            ).map(tuple),
            st.lists(texts, max_size=3).map(tuple),
        ),
        max_size=8,
    ),
    texts,
)
def test_any_response_gets_one_answer(responses: list[Response], key: str) -> None:
    state = DeltaState({ADDRESS_TYPE: False}, absent_limit=2)
    if key not in ("", "*"):
        state.demand(ADDRESS_TYPE, key)
    for response in responses:
        answer = state.finish(state.receive(response))
        assert answer.request.nonce == response.nonce
        assert answer.request.type_url == response.type_url
        assert bool(answer.request.error) == bool(answer.rejections)
    (request,) = state.start()
    assert request.initial_versions.keys().isdisjoint({""})
