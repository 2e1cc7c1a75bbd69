"""Which addresses are stopped: never one that may be somebody else's, or the node's."""

import argparse
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.agent import command
from daemonset.agent.pods import Pod
from daemonset.agent.stops import Stops, Uncaptured, decide_stops, read_uncaptured

ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "127.0.0.1", "fe80::1", "::", "what?")


def pod(uid: str, *addresses: str, phase: str = "Running", host: bool = False) -> Pod:
    return Pod(uid, uid, "shop", "sa", addresses, phase=phase, host_network=host)


pods = st.lists(
    st.builds(
        lambda addresses, phase, host: pod("", *addresses, phase=phase, host=host),
        st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3),
        st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        st.booleans(),
    ),
    max_size=6,
).map(
    lambda made: [
        pod(f"uid-{number}", *one.addresses, phase=one.phase, host=one.host_network)
        for number, one in enumerate(made)
    ]
)


def test_both_families_of_a_pod_that_cannot_be_captured_are_stopped() -> None:
    everybody = [pod("a", "10.0.0.1", "fd00::1"), pod("b", "10.0.0.2")]
    assert decide_stops(everybody, {"a"}, set()) == Stops({"10.0.0.1": "a", "fd00::1": "a"}, {})
    assert decide_stops(everybody, set(), set()) == Stops()


def test_an_address_that_another_pod_has_by_now_is_let_go() -> None:
    old, new = pod("a", "10.0.0.1"), pod("b", "10.0.0.1")
    decided = decide_stops([old, new], {"a"}, set())
    assert decided == Stops({}, {"10.0.0.1": "10.0.0.1 is that of the pod shop/b too"})
    assert decide_stops([new], {"a"}, set()) == Stops()
    # Neither can be captured: whoever has it is to be stopped.
    assert decide_stops([old, new], {"a", "b"}, set()).stopped == {"10.0.0.1": "a"}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_what_has_ended_has_no_address(phase: str) -> None:
    assert decide_stops([pod("a", "10.0.0.1", phase=phase)], {"a"}, set()) == Stops()
    both = [pod("a", "10.0.0.1"), pod("b", "10.0.0.1", phase=phase)]
    assert decide_stops(both, {"a"}, set()).stopped == {"10.0.0.1": "a"}


def test_the_node_does_not_stop_itself() -> None:
    decided = decide_stops([pod("a", "10.0.0.1", "127.0.0.1", "what?")], {"a"}, {"10.0.0.1"})
    assert decided.stopped == {}
    assert decided.spared == {
        "10.0.0.1": "10.0.0.1 is the node's own",
        "127.0.0.1": "127.0.0.1 is no address of one pod",
        "what?": "what? is no address of one pod",
    }


@given(
    pods,
    st.sets(st.sampled_from([f"uid-{n}" for n in range(6)])),
    st.sets(st.sampled_from(ADDRESSES)),
)
def test_nobody_else_is_ever_stopped(
    everybody: list[Pod], uncaptured: set[str], own: set[str]
) -> None:
    decided = decide_stops(everybody, uncaptured, own)
    living = [one for one in everybody if not one.terminated and not one.host_network]
    assert not decided.stopped.keys() & decided.spared.keys()
    for address, uid in decided.stopped.items():
        assert uid in uncaptured
        assert address not in own
        assert ipaddress.ip_address(address).is_private
        assert all(one.uid in uncaptured for one in living if address in one.addresses)
    for one in living:
        if one.uid in uncaptured:
            assert set(one.addresses) <= decided.stopped.keys() | decided.spared.keys()


def test_the_switch() -> None:
    assert read_uncaptured("stop") is Uncaptured.STOP
    assert read_uncaptured("permit") is Uncaptured.PERMIT
    for wrong in ("", "Permit", "true"):
        with pytest.raises(ValueError, match=f"AMBIENT_UNCAPTURED is '{wrong}', which is neither"):
            read_uncaptured(wrong)


def test_an_agent_with_a_switch_that_says_something_else_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMBIENT_UNCAPTURED", "allow")
    parser = argparse.ArgumentParser()
    command.add_parsers(parser.add_subparsers())
    arguments = parser.parse_args(["node-agent", "--node=node-1"])
    assert arguments.run(arguments) == 1
    assert "ambient node-agent: AMBIENT_UNCAPTURED is 'allow'" in capsys.readouterr().err
    arguments = parser.parse_args(["node-agent", "--node=node-1", "--uncaptured=permit"])
    assert command.read_config(arguments).agent.uncaptured is Uncaptured.PERMIT
