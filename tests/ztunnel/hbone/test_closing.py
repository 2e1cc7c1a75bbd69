import pytest

from ztunnel.hbone.closing import (
    FlowEnd,
    TcpEnd,
    reset_code_for,
    tcp_end_for_lost_tunnel,
    tcp_end_for_reset,
)
from ztunnel.http2.errors import ErrorCode


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_stream_that_is_cut_is_a_tcp_reset(code: ErrorCode) -> None:
    assert tcp_end_for_reset(code, end_stream_seen=False) is TcpEnd.RESET


@pytest.mark.parametrize("code", list(ErrorCode))
def test_after_end_stream_only_quiet_codes_are_clean(code: ErrorCode) -> None:
    quiet = code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL)
    expected = TcpEnd.CLOSE if quiet else TcpEnd.RESET
    assert tcp_end_for_reset(code, end_stream_seen=True) is expected


def test_a_lost_tunnel_is_a_reset_unless_all_was_said() -> None:
    assert tcp_end_for_lost_tunnel(True, True) is TcpEnd.CLOSE
    for seen, sent in ((True, False), (False, True), (False, False)):
        assert tcp_end_for_lost_tunnel(seen, sent) is TcpEnd.RESET


def test_only_what_went_wrong_is_reset() -> None:
    assert reset_code_for(FlowEnd.FIN) is None
    assert reset_code_for(FlowEnd.ERROR) is ErrorCode.CONNECT_ERROR
    assert reset_code_for(FlowEnd.CLOSED_BY_US) is ErrorCode.CANCEL
