"""Whether connections can pass by the proxy is found out by doing; what fails is named."""

import pytest

from ztunnel.kernel import direct_probe, direct_rules
from ztunnel.kernel.direct_probe import DirectProbeError, probe_direct
from ztunnel.linux.packet_queue import PacketQueue
from ztunnel.linux.tcp_sockets import Tally, TcpEndings, TcpSockets

pytestmark = pytest.mark.root


def test_this_kernel_can() -> None:
    probe_direct()


@pytest.mark.parametrize(
    ("what", "name", "instead", "says"),
    [
        (PacketQueue, "take", lambda *_: [], "was not queued"),
        (TcpSockets, "abort", lambda *_: True, "lives on"),
        (TcpSockets, "abort", lambda *_: False, "cannot be found"),
        (TcpEndings, "take", lambda *_: [], "is not told"),
    ],
)
def test_what_does_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch, what: type, name: str, instead: object, says: str
) -> None:
    monkeypatch.setattr(direct_probe, "_PATIENCE", 0.2)
    monkeypatch.setattr(what, name, instead)
    with pytest.raises(DirectProbeError, match=says):
        probe_direct()


def test_counts_that_are_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    take = TcpEndings.take

    def wrong(self: TcpEndings, most: int = 256) -> list[object]:
        return [
            (local, remote, Tally(tally.state, tally.received + 1, tally.sent, 1))
            for local, remote, tally in take(self, most)
        ]

    monkeypatch.setattr(TcpEndings, "take", wrong)
    with pytest.raises(DirectProbeError, match="miscounted"):
        probe_direct()


def test_a_kernel_that_cannot_queue_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> direct_rules.Queueing:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(direct_rules, "find_queueing", refused)
    with pytest.raises(DirectProbeError, match="No such file"):
        probe_direct()
