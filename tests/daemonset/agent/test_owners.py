"""An agent begins only where nobody else does its work, and stops where somebody begins."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemonset.agent import owners
from daemonset.agent.owners import (
    NotAloneError,
    is_served,
    look_for_others,
    only_agent,
    other_agents,
    wait_unserved,
    watch_socket,
)
from daemonset.agent.private_socket import listening
from tests.support.kube.manifests import MANIFESTS, read_base
from tests.support.kube.scripted_api import Exchange, scripted_api

FOLDER = "/var/run/ztunnel"
ISTIO_CNI = ("/opt/cni/bin", "/proc", "/etc/cni/net.d", "/var/run/istio-cni", "/var/run/ztunnel")
ISTIO_ZTUNNEL = ("/var/run/ztunnel",)
CALICO = ("/etc/cni/net.d", "/opt/cni/bin", "/var/run/calico")


def pod(name: str, paths: tuple[str, ...], owner: str = "", phase: str = "Running") -> Any:
    volumes: list[Any] = [{"name": str(n), "hostPath": {"path": p}} for n, p in enumerate(paths)]
    meta: dict[str, Any] = {"name": name, "namespace": "system"}
    if owner:
        meta["ownerReferences"] = [{"kind": "DaemonSet", "name": owner, "controller": True}]
    volumes.append({"name": "t", "projected": {}})
    return {"metadata": meta, "spec": {"volumes": volumes}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (ISTIO_CNI, True),
        (("/run/ztunnel/", "/var/snap/microk8s/current/args/cni-network"), True),
        (ISTIO_ZTUNNEL, False),
        (CALICO, False),
        ((), False),
    ],
)
def test_a_node_agent_is_known_by_what_it_mounts(paths: tuple[str, ...], found: bool) -> None:
    others = other_agents([pod("any", paths)], FOLDER, ("system", "ambient-agent"))
    assert others == (["system/any"] if found else [])
    assert other_agents([pod("any", paths, phase="Failed")], FOLDER, ("", "")) == []


def test_our_own_manifest_is_one_and_not_another() -> None:
    [template] = [
        item["spec"]["template"]
        for item in read_base(MANIFESTS / "base")
        if (item["kind"], item["metadata"]["name"]) == ("DaemonSet", "ambient-agent")
    ]
    meta = {
        "name": "ambient-agent-x",
        "namespace": "ambient-system",
        "ownerReferences": [{"name": "ambient-agent", "controller": True}],
    }
    mine = {"metadata": meta, "spec": template["spec"]}
    assert other_agents([mine], FOLDER, ("ambient-system", "ambient-agent")) == []
    assert other_agents([mine], FOLDER, ("ambient-2", "ambient-agent")) == [
        "ambient-system/ambient-agent-x"
    ]


async def test_the_second_agent_of_a_node_is_told_who_is_there(tmp_path: Path) -> None:
    lock = tmp_path / "run/agent.lock"
    async with only_agent(lock, "pod a/first"):
        with pytest.raises(NotAloneError, match="pod a/first"):
            async with only_agent(lock, "pod b/second", patience=0):
                raise AssertionError("it has the lock as well")
    async with only_agent(lock, "pod b/second", patience=0):
        assert lock.read_text() == "pod b/second\n"


async def test_it_waits_for_the_one_that_it_replaces(tmp_path: Path) -> None:
    lock = tmp_path / "agent.lock"
    entered = trio.Event()

    async def second() -> None:
        async with only_agent(lock, "second", patience=60):
            entered.set()

    async with trio.open_nursery() as nursery:
        async with only_agent(lock, "first"):
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            assert not entered.is_set()
        with trio.fail_after(30):
            await entered.wait()


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM], ids=["seqpacket", "stream"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = tmp_path / "ztunnel.sock"
    with listening(path, request.param):
        yield path


async def test_a_socket_where_somebody_answers_is_not_taken_over(served: Path) -> None:
    assert is_served(served)
    with pytest.raises(NotAloneError, match=r"somebody else serves .*ztunnel\.sock.*istio-cni"):
        await wait_unserved(served, patience=0)


async def test_a_socket_that_was_left_behind_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "ztunnel.sock"
    assert not is_served(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
    await wait_unserved(path, patience=0)


async def test_an_api_server_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owners, "_LOOK", 0.01)
    answers = [({"message": "starting"}, 503), ({"message": "not yet"}, 403), ({"items": []}, 200)]

    async def script(exchange: Exchange) -> None:
        assert exchange.query == {"fieldSelector": "spec.nodeName=n1"}
        body, status = answers.pop(0)
        await exchange.answer(body, status)

    async with scripted_api(script) as client:
        await look_for_others(client, "n1", Path(FOLDER), ("", ""))
    assert answers == []
    assert "starting; trying again" in caplog.text


@pytest.mark.parametrize(("replaced", "words"), [(True, "has taken .* over"), (False, "removed")])
async def test_an_agent_whose_socket_is_taken_ends(
    tmp_path: Path, replaced: bool, words: str
) -> None:
    path = tmp_path / "ztunnel.sock"
    with (
        listening(path, socket.SOCK_SEQPACKET),
        pytest.RaisesGroup(pytest.RaisesExc(NotAloneError, match=words)),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_socket, path, 0.01)
            await trio.testing.wait_all_tasks_blocked()
            path.unlink()
            if replaced:
                path.touch()
