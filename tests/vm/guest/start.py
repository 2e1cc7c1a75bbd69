"""The first process of the virtual machine: mounts, loads modules, checks, switches off."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from tests.vm.guest.report import MODULES, WANTED, report
from ztunnel.linux import netns

_REBOOT: Final = {"x86_64": 169}
_FINIT_MODULE: Final = {"x86_64": 313}
_POWER_OFF: Final = 0x4321FEDC
_MOUNTS: Final = (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"))

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _mount(kind: str, where: str) -> None:
    if _libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {where}: {os.strerror(error)}")


def _load(module: Path) -> str:
    """Loads a module. Returns why not, or nothing."""
    with open(module, "rb") as file:
        if _libc.syscall(_FINIT_MODULE["x86_64"], file.fileno(), b"", 0):
            return os.strerror(ctypes.get_errno())
    return ""


def _prepare() -> None:
    for kind, where in _MOUNTS:
        _mount(kind, where)
    (Path("/run") / "netns").mkdir()
    netns.bring_up("lo")
    loaded = {module.name: _load(module) for module in sorted(Path(MODULES).iterdir())}
    report("modules", True, time.monotonic(), {"release": os.uname().release, "loaded": loaded})


def main() -> None:
    """Runs what it is asked to, and switches the machine off."""
    try:
        _prepare()
        from tests.vm.guest.checks import run_check

        for name in Path(WANTED).read_text().splitlines():
            run_check(name)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    sys.stdout.flush()
    os.sync()
    _libc.syscall(_REBOOT["x86_64"], 0xFEE1DEAD, 672274793, _POWER_OFF, None)
