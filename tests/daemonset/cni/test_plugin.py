"""The CNI plugin as a program, against the agent's own server: this machine's, and arm64's."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset.agent.cni_request import CniRequest, CniRequestError, parse_request
from daemonset.agent.cni_server import CniRefused, CniServer
from tests.support.cni import call, on_arm64, plugin

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/cni-1"}],
    "ips": [{"address": "10.244.1.7/24", "gateway": "10.244.1.1"}, {"address": "fd00:0::7/64"}],
    "dns": {"search": ['a "quoted" one', "}{"]},
}


@pytest.fixture(scope="module", params=["here", "arm64"], autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    with on_arm64() if request.param == "arm64" else contextlib.nullcontext():
        yield


def configuration(path: Path | str, **others: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "kindnet",
        "type": "ambient-cni",
        "agentSocket": str(path),
        "patienceSeconds": 5,
        "prevResult": RESULT,
        **others,
    }


@pytest.fixture
def no_agent(tmp_path: Path) -> dict[str, Any]:
    return configuration(tmp_path / "nobody", patienceSeconds=0)


async def ask(server: CniServer, *calls: Callable[[], Any]) -> list[Any]:
    """What comes of the calls while the server runs."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        found = [await trio.to_thread.run_sync(each) for each in calls]
        nursery.cancel_scope.cancel()
    return found


async def test_a_pod_starts_when_the_agent_says_so(tmp_path: Path) -> None:
    seen: list[CniRequest] = []

    async def answer(request: CniRequest) -> None:
        seen.append(request)

    server = CniServer(tmp_path / "cni.sock", answer)
    [added, checked] = await ask(
        server,
        partial(call, "ADD", configuration(server.path)),
        partial(call, "CHECK", configuration(server.path)),
    )
    assert (added.status, added.errors) == (0, "")
    assert added.json == RESULT
    assert (checked.status, checked.output) == (0, "")
    uid = "11111111-2222-3333-4444-555555555555"
    expected = CniRequest(
        "ADD", "abc", "/var/run/netns/cni-1", "eth0", "shop", "web", uid, ("10.244.1.7", "fd00::7")
    )
    assert seen[0] == expected
    assert seen[1].command == "CHECK"
    assert server.answers == {"ok": 2, "refused": 0, "malformed": 0}
    assert not server.path.exists()


async def test_a_refusal_is_for_the_pods_events(tmp_path: Path) -> None:
    async def answer(request: CniRequest) -> None:
        raise CniRefused('no ztunnel is connected\nsay "please"')

    server = CniServer(tmp_path / "cni.sock", answer)
    [added] = await ask(server, partial(call, "ADD", configuration(server.path)))
    assert added.status == 1
    assert added.json == {
        "cniVersion": "1.0.0",
        "code": 100,
        "msg": "ambient mesh: the pod's traffic is not captured",
        "details": 'no ztunnel is connected say "please"',
    }


async def test_a_defect_of_the_agent_holds_the_pod_back(tmp_path: Path) -> None:
    async def answer(request: CniRequest) -> None:
        raise ZeroDivisionError("oops")

    server = CniServer(tmp_path / "cni.sock", answer)
    [added] = await ask(server, partial(call, "ADD", configuration(server.path)))
    assert (added.status, added.json["code"]) == (1, 100)
    assert "ZeroDivisionError: oops" in added.json["details"]


def test_without_an_agent_pods_wait(no_agent: dict[str, Any]) -> None:
    for command in ("ADD", "CHECK"):
        outcome = call(command, no_agent)
        assert (outcome.status, outcome.json["code"]) == (1, 11), command
        assert "shop" in outcome.json["details"]
        assert no_agent["agentSocket"] in outcome.json["details"]


def test_without_an_agent_some_pass(no_agent: dict[str, Any], tmp_path: Path) -> None:
    excluded = {**no_agent, "excludeNamespaces": ["kube-system", "shop"]}
    assert call("ADD", excluded).json == RESULT
    assert call("ADD", excluded, namespace="shop2").status == 1
    listed = tmp_path / "unenrolled"
    listed.write_text("default\nshop\n")
    known = {**no_agent, "unenrolledNamespacesFile": str(listed), "patienceSeconds": 600}
    assert call("ADD", known).json == RESULT  # and does not wait
    known["patienceSeconds"] = 0
    for other in ("sho", "shops", "hop", "default\n"):
        assert call("ADD", known, namespace=other).status == 1, other


@contextmanager
def listener(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def accept() -> None:
            connection, _ = listening.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            thread.join(30)


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"", "hung up"), (b"ok", "hung up"), (b"OK\n", "hung up"), (b"ok\nno", "hung up")],
)
def test_only_a_whole_yes_is_a_yes(tmp_path: Path, said: bytes, words: str) -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        connection.sendall(said)

    path = tmp_path / "cni.sock"
    with listener(path, serve):
        outcome = call("ADD", configuration(path))
    assert (outcome.status, outcome.json["code"]) == (1, 11)
    assert words in outcome.json["details"]


def test_an_agent_that_hangs_is_given_up(tmp_path: Path) -> None:
    over = threading.Event()
    path = tmp_path / "cni.sock"

    def serve(connection: socket.socket) -> None:
        over.wait(30)

    with listener(path, serve):
        outcome = call("ADD", configuration(path, patienceSeconds=1))
        over.set()
    assert (outcome.status, outcome.json["code"]) == (1, 11)
    assert "took too long" in outcome.json["details"]


def test_an_agent_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(call("ADD", configuration(path))))
    caller.start()
    caller.join(0.3)  # it may have found nobody by now

    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        connection.sendall(b"ok\n")

    with listener(path, serve):
        caller.join(30)
    assert found[0].json == RESULT


def test_what_must_never_fail_does_not(no_agent: dict[str, Any]) -> None:
    for command in ("DEL", "STATUS", "GC"):
        outcome = call(command, no_agent)
        assert (outcome.status, outcome.output) == (0, ""), command
    assert call("DEL", b"\xff nonsense", arguments="").status == 0
    for given_configuration in (no_agent, b"", b"nonsense"):
        outcome = call("VERSION", given_configuration)
        assert outcome.status == 0
        assert "1.1.0" in outcome.json["supportedVersions"]


@pytest.mark.parametrize(
    ("command", "given_configuration", "arguments", "code"),
    [
        ("ADD", b"[]", None, 6),
        ("ADD", b"{", None, 6),
        ("ADD", b'{"a":' * 70 + b"1" + b"}" * 70, None, 6),
        ("ADD", b" " * (1 << 20), None, 6),
        ("ADD", {"cniVersion": "1.0.0"}, None, 7),
        ("ADD", {"prevResult": {}, "agentSocket": 5}, None, 7),
        ("ADD", {"prevResult": {}, "patienceSeconds": "long"}, None, 7),
        ("ADD", {"prevResult": {}, "patienceSeconds": 601}, None, 7),
        ("ADD", {"prevResult": {}}, "", 4),
        ("ADD", {"prevResult": {}}, "XK8S_POD_NAMESPACE=shop;K8S_POD_NAMESPACEX=a", 4),
        ("ADD", {"prevResult": {}}, f"K8S_POD_NAMESPACE={'x' * 300}", 4),
        ("JUMP", {}, None, 4),
        ("", {}, None, 4),
    ],
)
def test_mistakes_are_named(
    command: str, given_configuration: Any, arguments: str | None, code: int
) -> None:
    outcome = call(command, given_configuration, arguments=arguments)
    assert outcome.status == 1
    assert outcome.json["code"] == code
    assert outcome.json["msg"]
    assert outcome.errors == ""


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(JSON, st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from(["", " ", "\n\t"]))
def test_any_result_passes_through_untouched(
    result: Any, others: dict[str, Any], space: str
) -> None:
    text = json.dumps({**others, "prevResult": result, "excludeNamespaces": ["shop"]})
    outcome = call("ADD", f"{space}{text}{space}".encode())
    assert (outcome.status, outcome.errors) == (0, "")
    assert outcome.json == result


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=40)
    | st.text('{}[]",:\\u0truefalsn e-+.1', max_size=40).map(str.encode)
    | JSON.map(lambda value: json.dumps(value).encode()[:-1])
)
def test_anything_else_is_refused_and_harmless(data: bytes) -> None:
    data = (
        b'{"prevResult": {}, "agentSocket": "/nowhere", "patienceSeconds": 0, "x": ' + data + b"}"
    )
    outcome = call("ADD", data)
    assert outcome.status == 1, "there is no agent"
    assert outcome.errors == ""
    try:
        json.loads(data)
    except ValueError:
        assert outcome.json["code"] == 6


def test_the_real_build_is_static() -> None:
    program = plugin(checked=False)
    assert b"/ld-linux" not in program.read_bytes()
    assert call("VERSION", {"cniVersion": "0.4.0"}, program=program).json["cniVersion"] == "0.4.0"


@given(st.binary(max_size=200) | st.lists(st.binary(max_size=20)).map(b"\0".join))
def test_questions_of_any_kind_are_read_or_refused(data: bytes) -> None:
    for question in (
        data,
        b"ambient-cni/1\0ADD\0c\0/n\0eth0\0K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\0" + data,
    ):
        with contextlib.suppress(CniRequestError):
            assert parse_request(question).netns.startswith("/")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: b"ambient-cni/2"}, "speaks"),
        ({1: b"DEL"}, "CNI_COMMAND"),
        ({3: b"netns"}, "CNI_NETNS"),
        ({5: b"K8S_POD_NAME=x"}, "CNI_ARGS"),
        ({5: b"\xff"}, "UTF-8"),
        ({6: b"{}"}, "prevResult"),
        ({6: b'{"prevResult": {"ips": [{"address": "10.0.0.300/8"}]}}'}, "prevResult"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(change: dict[int, bytes], words: str) -> None:
    fields = [
        b"ambient-cni/1", b"ADD", b"c", b"/n", b"eth0", b"K8S_POD_NAMESPACE=a;K8S_POD_NAME=b",
        b'{"prevResult": {"ips": []}}',
    ]  # fmt: skip
    assert parse_request(b"\0".join(fields)).pod_name == "b"
    for position, value in change.items():
        fields[position] = value
    with pytest.raises(CniRequestError, match=words):
        parse_request(b"\0".join(fields))
