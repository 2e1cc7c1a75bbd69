"""What the machine must offer for tests to mean something, and what happens where it does not.

A test that cannot run is skipped, and the end of the run says so in words that nobody overlooks;
where CI=true it makes the run fail, so that a skip cannot hide there.
"""

from __future__ import annotations

import functools
import os
import shutil

import pytest

from ztunnel.kernel.direct_probe import DirectProbeError, probe_direct
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux import netns

LEFT_OUT = {
    "no Istio": "AMBIENTD_WITHOUT_ISTIO",
    "no Kubernetes": "AMBIENTD_WITHOUT_KUBERNETES",
    "no virtual machine": "AMBIENTD_WITHOUT_MACHINE",
}
"""How the reasons begin for which tests may be left out in CI as well, where the run was started
with that variable at 1: an API server may take longer to build than there is time, and an emulator
and a kernel may not be had."""


@functools.cache
def without_namespaces() -> str | None:
    """Why network namespaces cannot be made here, found out by making one; None when they can."""
    try:
        netns.create().close()
    except OSError as error:
        return f"no network namespaces: {error} (run the tests as root)"
    return None


@functools.cache
def without_compiler() -> str | None:
    """Why nothing in C can be built here; None when it can."""
    missing = [tool for tool in ("make", "cc") if shutil.which(tool) is None]
    return f"no {' and no '.join(missing)} (Debian: gcc, libc6-dev and make)" if missing else None


@functools.cache
def without_sockmap() -> str | None:
    """Why sockets cannot be joined in the kernel here; None when they can."""
    try:
        Sockmap(1).close()
    except OSError as error:
        return f"no sockmap: {error} (run the tests as root, outside of user namespaces)"
    return None


@functools.cache
def without_direct() -> str | None:
    """Why connections cannot pass by the proxy here; None when they can."""
    try:
        probe_direct()
    except DirectProbeError as error:
        return f"no connections past the proxy: {error}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") is not None and without_namespaces() is not None:
            item.add_marker(pytest.mark.skip(reason=str(without_namespaces())))


def _skips(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """How many tests were skipped for which reason."""
    found: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "?"
        found[reason] = found.get(reason, 0) + 1
    return found


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


def _may_be_left_out(reason: str) -> bool:
    return not _in_ci() or any(
        words in reason and os.environ.get(variable) == "1" for words, variable in LEFT_OUT.items()
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.exitstatus != 0:
        return
    if not all(map(_may_be_left_out, _skips(reporter))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = _skips(terminalreporter)
    if not skips:
        return
    fatal = not all(map(_may_be_left_out, skips))
    title = "NOT EVERYTHING WAS TESTED" + (", AND HERE IT MUST BE" if fatal else "")
    terminalreporter.section(title, sep="!", red=fatal, yellow=not fatal)
    for reason, count in skips.items():
        terminalreporter.line(f"{count} tests: {reason}")
