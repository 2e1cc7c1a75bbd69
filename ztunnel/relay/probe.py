"""Tries each kernel path at start: a path that does not move every byte is not used.

Kernels have had bugs in these paths, and hardened ones forbid them, so a path
counts as there when flows through it have delivered what was sent, in both
directions, with a half-close of either side first, and had counted it. For
kTLS both ends change their keys as well: a kernel that cannot do that must cut
a connection when its peer does.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux.ktls import attach
from ztunnel.relay.engine import Engine
from ztunnel.relay.pair import PairFlow
from ztunnel.relay.trial import PATIENCE, Ending, ProbeError, Room, Trial
from ztunnel.relay.tunnel_trial import TunnelTrial

log = logging.getLogger("ztunnel.kernel")

OFF: Final = "switched off"

MakeTrial = Callable[[Engine, bool], Trial]


async def probe_paths(sockmap: bool, splice: bool, ktls: bool) -> KernelPaths:
    """The paths that are wanted and work here. Says in the log which are not used, and why.

    Args:
        sockmap, splice, ktls: which may be used.
    """
    found = KernelPaths()
    reasons = found.reasons
    made, reasons["sockmap"] = await _try(sockmap, _make_sockmap, PairTrial)
    found.sockmap = made.sockmap
    made, reasons["splice"] = await _try(splice, _make_splice, PairTrial)
    found.pipes = made.pipes
    make_ktls = _make_ktls if found.pipes is not None else _make_ktls_alone
    made, reasons["ktls"] = await _try(ktls, make_ktls, _tunnel_trial)
    found.ktls = made.ktls
    if made.pipes is not None:
        made.pipes.close()
    for name, reason in reasons.items():
        if reason and reason != OFF:
            log.info("kernel path %s is off: %s", name, reason)
    if found.ktls:
        log.info("kernel path ktls is on, as ZTUNNEL_KTLS wants it")
    return found


def _make_sockmap() -> KernelPaths:
    return KernelPaths(sockmap=Sockmap())


def _make_splice() -> KernelPaths:
    return KernelPaths(pipes=Pipes())


def _make_ktls() -> KernelPaths:
    found = _make_ktls_alone()
    found.pipes = Pipes()
    return found


def _make_ktls_alone() -> KernelPaths:
    with Room() as room:
        one, other = room.pair()
    with one, other:
        try:
            attach(one)
        except FileNotFoundError:
            raise OSError(2, "this kernel has no tls module, or it is not loaded") from None
    return KernelPaths(ktls=True)


def _tunnel_trial(engine: Engine, client_first: bool) -> Trial:
    suite = "TLS_AES_128_GCM_SHA256" if client_first else "TLS_AES_256_GCM_SHA384"
    return TunnelTrial(engine, suite)


async def _try(
    wanted: bool, make: Callable[[], KernelPaths], trial: MakeTrial
) -> tuple[KernelPaths, str]:
    """A path that works; else none, and why it does not."""
    if not wanted:
        return KernelPaths(), OFF
    try:
        path = make()
    except OSError as error:
        return KernelPaths(), str(error.strerror or error)
    try:
        with trio.fail_after(PATIENCE):
            for client_first in (True, False):
                await _move(path, trial, client_first)
    except trio.TooSlowError:
        path.close()
        return KernelPaths(), f"it did not move everything within {PATIENCE:g}s"
    except (ProbeError, OSError) as error:
        path.close()
        return KernelPaths(), str(error)
    except BaseException:
        path.close()
        raise
    return path, ""


async def _move(path: KernelPaths, make: MakeTrial, client_first: bool) -> None:
    """One connection. Raises ProbeError, OSError."""
    engine = Engine()
    engine.use_paths(path)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            trial = make(engine, client_first)
            try:
                await trial.run(client_first)
            finally:
                trial.close()
            nursery.cancel_scope.cancel()
    except* (ProbeError, OSError) as group:
        raise _first(group) from None
    finally:
        engine.leave_paths()
        engine.close()


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


class PairTrial(Trial):
    """Two plain sockets with a flow between them."""

    def __init__(self, engine: Engine, client_first: bool) -> None:
        with Room() as room:
            client, near = room.pair()
            server, far = room.pair()
        super().__init__(engine, client, server)
        self._ending = Ending()
        self._flow = PairFlow(engine, near, far, self._ending)

    async def check(self, expected: int) -> None:
        await self._ending.check(expected)
        if self._flow.path == "copy":
            raise ProbeError("the flow did not use it")

    def close(self) -> None:
        self._flow.abort("the probe is over")
        super().close()
