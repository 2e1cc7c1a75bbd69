"""What a node's kernel can do is found out by doing it, and nothing of that stays."""

import json
import sys
from pathlib import Path

import pytest

from daemonset.agent.host import HostProbes
from daemonset.agent.node_agent import probe
from daemonset.agent.node_probe import probe_node
from daemonset.cli import main
from tests.support.descriptors import no_leak
from ztunnel.linux import netns, sockets

PROC = Path("/proc")


@pytest.mark.root
def test_everything_that_is_needed_works_here() -> None:
    with no_leak():
        features = probe_node(PROC)
    assert [one for one in features if one.needed and not one.works] == []
    assert sum(one.needed for one in features) >= 5
    assert len({one.name for one in features}) == len(features)


@pytest.mark.root
def test_what_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "original_destination", lambda sock: ("127.0.0.1", 15001))
    found = {one.name: one for one in probe_node(PROC)}
    assert not found["redirection"].works
    assert "192.0.2.2:80 seems to be one to 127.0.0.1:15001" in found["redirection"].detail
    assert found["capture rules (nftables)"].works


def test_without_rights_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(netns, "create", refuse)
    [only] = probe_node(PROC)
    assert (only.works, only.needed, "not permitted" in only.detail) == (False, True, True)


@pytest.mark.root
async def test_the_agent_has_it_done_by_another_process() -> None:
    assert [one.name for one in await probe(PROC)] == [one.name for one in probe_node(PROC)]


async def test_a_probe_that_fails_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    [only] = await probe(PROC)
    assert (only.name, only.works, only.needed) == ("trying the kernel", False, False)


@pytest.mark.root
def test_a_person_can_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--this-node"]) == 0
    assert capsys.readouterr().out.endswith("pods of this machine can be captured\n")
    assert main(["check", "--this-node", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "network namespaces"
    monkeypatch.setattr(HostProbes, "repair", lambda self: ["gone"])
    assert main(["check", "--this-node"]) == 1
    said = capsys.readouterr().out
    assert "✗ the node's probe rules (nftables): gone" in said
    assert said.endswith("pods of this machine cannot be captured\n")
