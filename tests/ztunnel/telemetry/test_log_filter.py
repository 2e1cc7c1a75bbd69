from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.log_filter import OFF, TRACE, LogFilter


def test_the_longest_scope_that_fits_decides() -> None:
    wanted = LogFilter.parse("warn, access=info,access.noisy=off,ztunnel::proxy=DEBUG,dns")
    assert wanted.level_for("other") == logging.WARNING
    assert wanted.level_for("access.shop") == logging.INFO
    assert wanted.level_for("access.noisy") == OFF
    assert wanted.level_for("ztunnel.proxy.inbound") == logging.DEBUG
    assert wanted.level_for("ztunnel.proxying") == logging.WARNING
    assert wanted.level_for("dns") == TRACE


def test_changes_lie_over_what_was_there() -> None:
    wanted = LogFilter.parse("info,access=off").with_changes("ztunnel::xds:debug,error")
    assert str(wanted) == "error,access=off,ztunnel.xds=debug"
    assert LogFilter.parse(str(wanted)) == wanted


@pytest.mark.parametrize("text", ["a=loud", "=info", "a b=info", "a[span]=info", "1=info"])
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*: allowed are scope=level"):
        LogFilter.parse(text)


def test_apply_sets_and_resets_loggers() -> None:
    level = logging.root.level
    logger = logging.getLogger("ztunnel.test_filter")
    try:
        LogFilter.parse("error,ztunnel.test_filter=debug").apply()
        assert logger.isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("ztunnel.test_filter_other").isEnabledFor(logging.WARNING)
        LogFilter.parse("error").apply()
        assert not logger.isEnabledFor(logging.WARNING)
    finally:
        LogFilter().apply()
        logging.root.setLevel(level)


@given(st.text())
def test_any_text_is_a_filter_or_a_value_error(text: str) -> None:
    try:
        wanted = LogFilter.parse(text)
    except ValueError:
        return
    assert LogFilter.parse(str(wanted)) == wanted
