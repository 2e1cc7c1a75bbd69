"""A ztunnel that is told to end stays for as long as pods of its node need it, and no longer."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from daemonset.agent import relief
from daemonset.agent.relief import LEAVE_SECONDS, NOTICE_SECONDS, may_end, wait_for_relief
from daemonset.agent.status import AgentStatus, PodState, PodStatus, write_status

ENROLLED = PodStatus("1", "web", "shop", PodState.ENROLLED, "its label says so")
OUT = replace(ENROLLED, state=PodState.NOT_IN_MESH)
LEAVING = replace(ENROLLED, state=PodState.LEAVING)


@pytest.mark.parametrize(
    ("status", "after"),
    [
        (None, 0.0),  # below another mesh's agent
        (AgentStatus(2, True, "", (ENROLLED,)), 0.0),  # the next one is there
        (AgentStatus(1, True, "", ()), 0.0),
        (AgentStatus(1, True, "", (OUT,), leaving=True), 0.0),
        (AgentStatus(1, True, "", (ENROLLED,)), NOTICE_SECONDS),
        (AgentStatus(1, True, "", (OUT, ENROLLED), leaving=True), LEAVE_SECONDS),
        (AgentStatus(1, True, "", (OUT, LEAVING), leaving=True), LEAVE_SECONDS),
    ],
)
def test_how_long_it_stays(status: AgentStatus | None, after: float) -> None:
    assert may_end(status, after)
    assert after == 0.0 or not may_end(status, after - 0.01)


def test_it_waits_for_the_last_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "LOOK", 0.01)
    write_status(AgentStatus(1, True, "", (OUT, LEAVING), leaving=True), tmp_path)
    waiting = threading.Thread(target=wait_for_relief, args=(tmp_path,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    write_status(AgentStatus(1, True, "", (OUT, OUT), leaving=True), tmp_path)
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_nobody_understands_holds_up_nothing(tmp_path: Path) -> None:
    wait_for_relief(tmp_path)
    (tmp_path / "agent-status.json").write_text("{}")
    wait_for_relief(tmp_path)
