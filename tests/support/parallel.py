"""Who runs what when the tests run in several processes at a time (`pytest -n 2`, pytest-xdist).

A file's tests stay together and in order, so that what they share is made once. Files are handed
out in the order in which they are found: tests/cluster comes first, which takes longest, and the
last ones take seconds, so that the processes end at about the same time.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_TOGETHER = ("tests/cluster/",)
"""Folders whose files share what fits a machine only once."""


def together(nodeid: str) -> str:
    """The name of the group of tests that one process runs, one after the other."""
    for folder in _TOGETHER:
        if nodeid.startswith(folder):
            return folder
    return nodeid.partition("::")[0]


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Groups of `together`, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """This order, unless the command line asks for another with `--dist`."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return _ByFile(config, log)
