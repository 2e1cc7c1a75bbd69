"""The kernel paths on kernels that have them, each in a small virtual machine under emulation.

Each check runs inside (tests/vm/guest) and is judged here by itself. Correctness only: emulation
says nothing about speed.
"""

import functools

import pytest

from tests.support.cache import Unavailable
from tests.support.vm.kernels import NEW, OLD, kernel
from tests.support.vm.machine import Run, run
from tests.vm.guest.checks import CHECKS, DIFFERENT, KEYS, WITHOUT_KEYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WANTED = {NEW: [*CHECKS, *KEYS], OLD: [*DIFFERENT, *WITHOUT_KEYS]}


@functools.cache
def machine(suite: str) -> Run | str:
    """What the machine with that kernel said; or why there is none."""
    try:
        return run(kernel(suite), WANTED[suite])
    except Unavailable as error:
        return f"no virtual machine: {error}"


def said(suite: str, check: str) -> object:
    """What a check found. Fails as it failed."""
    found = machine(suite)
    if isinstance(found, str):
        pytest.skip(found)
    result = found.results.get(check)
    if result is None:
        pytest.fail(f"no result of {check}; the machine said:\n{found.console[-6000:]}")
    assert result["ok"], result["detail"]
    return result["detail"]


@pytest.mark.parametrize(
    ("suite", "check"),
    [
        pytest.param(suite, check, id=f"{suite}: {check}")
        for suite, checks in WANTED.items()
        for check in checks
        if check != "probe"
    ],
)
def test_in_the_machine(suite: str, check: str) -> None:
    said(suite, check)


def test_the_probe_finds_every_path_where_keys_can_change() -> None:
    assert said(NEW, "probe") == {"sockmap": "", "splice": "", "ktls": ""}


def test_the_probe_leaves_ktls_off_where_they_cannot() -> None:
    found = said(OLD, "probe")
    assert isinstance(found, dict)
    assert (found["sockmap"], found["splice"]) == ("", "")
    assert "Linux 6.14" in found["ktls"]
