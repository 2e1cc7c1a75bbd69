"""The CNI plugin, built for tests (with the compiler's checks for memory and undefined behaviour),
and called as a container runtime calls it; also the one for arm64, in QEMU's emulation of a user's
program."""

import functools
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.requirements import without_compiler

SOURCES = Path(__file__).parents[2] / "daemonset" / "cni"
_CROSS = "aarch64-linux-gnu-gcc"
_EMULATOR = "qemu-aarch64"


@functools.cache
def plugin(*, checked: bool = True) -> Path:
    """The program; one build for the whole run. Skips the test where nothing can be built."""
    missing = without_compiler()
    if missing:
        pytest.skip(missing)
    out = Path(tempfile.mkdtemp(prefix="ambient-cni-"))
    command = ["make", "--silent", "-C", str(SOURCES), f"OUT={out}"]
    subprocess.run([*command, "CHECKED=1"] if checked else command, check=True, timeout=120)
    return out / "ambient-cni"


def without_arm64() -> str | None:
    """Why the plugin for arm64 cannot be tried here; None when it can."""
    if platform.machine() == "aarch64":
        return without_compiler()
    packages = {_CROSS: "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross", _EMULATOR: "qemu-user"}
    missing = [packages[each] for each in packages if shutil.which(each) is None]
    if missing:
        return f"the plugin for arm64 cannot be run (Debian: {' and '.join(missing)})"
    return without_compiler()


@functools.cache
def _arm64() -> tuple[str, ...]:
    """What runs the program for arm64, which is the one that the image has."""
    if platform.machine() == "aarch64":
        return (str(plugin(checked=False)),)
    out = Path(tempfile.mkdtemp(prefix="ambient-cni-arm64-"))
    command = ["make", "--silent", "-C", str(SOURCES), f"OUT={out}", f"CC={_CROSS}"]
    subprocess.run(command, check=True, timeout=120)
    return (_EMULATOR, str(out / "ambient-cni"))


_running: list[tuple[str, ...]] = []


@contextmanager
def on_arm64() -> Iterator[None]:
    """Calls within run the program for arm64. Skips the test where that is not possible."""
    missing = without_arm64()
    if missing:
        pytest.skip(missing)
    _running.append(_arm64())
    try:
        yield
    finally:
        _running.pop()


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def call(
    command: str,
    configuration: Any,
    *,
    namespace: str = "shop",
    program: Path | None = None,
    netns: str = "/var/run/netns/cni-1",
    arguments: str | None = None,
) -> Outcome:
    """Runs the plugin to its end. `configuration`: bytes, or what becomes JSON."""
    if arguments is None:
        arguments = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;"
            "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=11111111-2222-3333-4444-555555555555"
        )
    data = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "abc",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments,
        "CNI_PATH": "/opt/cni/bin",
    }
    if program is not None:
        words: tuple[str, ...] = (str(program),)
    else:
        words = _running[-1] if _running else (str(plugin()),)
    done = subprocess.run(words, input=data, env=environment, capture_output=True, timeout=60)
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
