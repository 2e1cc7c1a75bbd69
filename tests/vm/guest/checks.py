"""What is checked inside the virtual machine, and how one check is run.

Most of it would run as well on any machine whose kernel has the tls module, or whose control groups
are those of cgroup v2 alone; this is where one is sure to be found.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final
from unittest import mock

import trio

from tests.vm.guest import control_groups, pairs, records, tunnels
from tests.vm.guest.report import report
from ztunnel.relay import probe as probes

SECONDS: Final = 180.0  # for one check, under emulation, on a busy host


async def probe() -> dict[str, str]:
    """Which paths this kernel has, by the probe that a worker makes at start."""
    with mock.patch.object(probes, "PATIENCE", SECONDS / 3):
        paths = await probes.probe_paths(True, True, True)
    reasons = dict(paths.reasons)
    paths.close()
    return reasons


Check = Callable[[], Awaitable[Any]]

CHECKS: Final[dict[str, Check]] = {
    "probe": probe,
    **{
        f"records {suite}": functools.partial(records.both_ways, suite) for suite in records.CIPHERS
    },
    "plain sockets": pairs.random_chunks,
    "alerts": records.alerts,
    "forged record": records.forged,
    "held back": records.held_back,
    **{
        f"tunnel {client} to {server}": functools.partial(tunnels.random_chunks, client, server)
        for client, server in (("ktls", "ktls"), ("ktls", "tls"), ("tls", "ktls"))
    },
    "no pipes": tunnels.without_pipes,
    "small frames": tunnels.small_frames,
    "half-close": tunnels.half_close,
    "reset": tunnels.reset,
    "slow reader": tunnels.slow_reader,
    "last bytes": tunnels.last_bytes,
    "splice refused": tunnels.splice_refused,
    "fatal alert": tunnels.fatal_alert,
    "forged in a tunnel": tunnels.forged,
    "cut tunnel": tunnels.cut,
    "pods by cgroup v2": control_groups.found_by_cgroup_v2,
}

# The part of it that older kernels do in another way.
DIFFERENT: Final = (
    "probe", "plain sockets", "records TLS_AES_256_GCM_SHA384", "alerts", "tunnel ktls to ktls",
    "half-close", "last bytes", "splice refused", "forged in a tunnel",
)  # fmt: skip

# Only where the kernel can change keys.
KEYS: Final[dict[str, Check]] = {
    "key updates in records": records.key_updates,
    **{
        f"key updates {client} to {server}": functools.partial(tunnels.key_updates, client, server)
        for client, server in (("ktls", "ktls"), ("ktls", "tls"), ("tls", "ktls"))
    },
    "key limit": tunnels.key_limit,
}

# Only where it cannot.
WITHOUT_KEYS: Final[dict[str, Check]] = {"no new keys": tunnels.no_new_keys}


def run_check(name: str) -> None:
    """Runs one, and reports it."""
    check = {**CHECKS, **KEYS, **WITHOUT_KEYS}[name]
    started = time.monotonic()

    async def bounded() -> Any:
        with trio.fail_after(SECONDS):
            return await check()

    try:
        detail, ok = trio.run(bounded), True
    except BaseException:
        detail, ok = traceback.format_exc()[-4000:], False
    report(name, ok, time.monotonic() - started, detail)
