"""Descriptors of the process that the tests run in."""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 5.0  # seconds for threads that are about to close something


def count_descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_leak() -> Iterator[None]:
    """What the block opens is closed at its end. Fewer than before are no leak: threads of tests
    before it may have closed theirs meanwhile."""
    gc.collect()
    before = count_descriptors()
    yield
    deadline = time.monotonic() + _PATIENCE
    while (now := count_descriptors()) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert now <= before, f"descriptors have leaked: {now - before}"
