"""What failed, once more and in few words, as the last thing that a run says.

A failure quotes the logs of a whole mesh, and where `CI` is set pytest quotes them again in its own
summary. Who is shown only the end of the output must find there what failed, and why.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

_MOST = 7
_WIDTH = 220  # characters, of one of them; with `_MOST`, less than 2,000 altogether


def in_short(report: pytest.TestReport | pytest.CollectReport) -> str:
    """One line: which test, and the first line of the reason."""
    crash = getattr(report.longrepr, "reprcrash", None)
    words = str(crash.message if crash is not None else report.longreprtext).strip()
    while_ = "" if report.when in ("call", None) else f" ({report.when})"
    line = f"{report.nodeid}{while_}: {words.splitlines()[0] if words else 'no reason given'}"
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """Around all other summaries, so that this is the last one."""
    yield
    stats = terminalreporter.stats
    failed = [*stats.get("error", []), *stats.get("failed", [])]
    if failed:
        terminalreporter.section("WHAT FAILED, IN SHORT", sep="!", red=True)
        for report in failed[:_MOST]:
            terminalreporter.line(in_short(report))
        if len(failed) > _MOST:
            terminalreporter.line(f"and {len(failed) - _MOST} more")
