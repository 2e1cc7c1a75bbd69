"""Boots a small virtual machine, runs the checks of `tests.vm.guest` in it, and reads its results.

QEMU emulates the processor in software: it needs no rights and no hardware, and says nothing about
speed. The machine has no disk and no network; what it has to say comes over its serial console.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.cache import Unavailable
from tests.support.vm.initramfs import build
from tests.support.vm.kernels import Kernel
from tests.vm.guest.report import MARK

QEMU: Final = "qemu-system-x86_64"
SECONDS: Final = 800  # for one machine, on a busy host; half a minute on one that is not


@dataclass(frozen=True, slots=True)
class Run:
    """What a machine said.

    Attributes:
        results: by the name of the check.
        console: all of it, for people.
        seconds: from its start to its end.
    """

    results: dict[str, dict[str, Any]]
    console: str
    seconds: float


def run(kernel: Kernel, checks: Sequence[str]) -> Run:
    """Boots the kernel, runs checks by their names, waits for the machine to switch itself off.

    Raises:
        Unavailable: there is no QEMU here.
    """
    if platform.machine() != "x86_64":
        raise Unavailable("its Python is this machine's, and its processor an x86-64")
    if shutil.which(QEMU) is None:
        raise Unavailable(f"no {QEMU} (Debian: qemu-system-x86)")
    with tempfile.TemporaryDirectory() as folder:
        initramfs = Path(folder, "initramfs")
        initramfs.write_bytes(build(kernel, checks))
        command = [
            QEMU,
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768"),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-device", "virtio-rng-pci"),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
            # One that panics ends at once.
            *("-append", "console=ttyS0 quiet panic=-1"),
        ]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=SECONDS,
            )
            said = done.stdout
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"") + b"\n(not done in time: switched off)\n"
    console = said.decode(errors="replace").replace("\r", "")
    return Run(_results(console), console, time.monotonic() - started)


def _results(console: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in console.splitlines():
        _, mark, text = line.partition(MARK)
        if mark:
            result = json.loads(text)
            found[result["name"]] = result
    return found
