"""The file system of a small virtual machine: Python, what the project imports, and the project.

A "newc" cpio archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst),
not compressed: under software emulation unpacking would cost more than reading. Python and its
libraries lie where they lie on this machine, so that it finds itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.support.vm.kernels import Kernel
from tests.vm.guest.report import MODULES, WANTED

_SITE: Final = "/site"

_PACKAGES: Final = (
    "trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna", "cryptography",
    "cffi", "_cffi_backend", "hpack",
)  # fmt: skip
_UNUSED: Final = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "distutils",
    "site-packages", "pydoc_data", "sqlite3", "curses", "dbm", "venv",
}  # fmt: skip
_PROJECT: Final = ("ztunnel", "daemonset", "tests/support", "tests/vm")

_INIT: Final = """#!{python} -sB
import sys
sys.path[:0] = ["{site}"]
from tests.vm.guest.start import main
main()
"""


def build(kernel: Kernel, checks: Sequence[str]) -> bytes:
    """The archive for a kernel, whose modules are loaded in the order of their names."""
    archive = Archive()
    archive.text(WANTED, "\n".join(checks), 0o644)
    python = Path(os.path.realpath(sys.executable))
    archive.text("/init", _INIT.format(python=python, site=_SITE), 0o755)
    for folder in ("/dev", "/proc", "/sys", "/tmp", "/run"):
        archive.folder(folder)
    archive.character_device("/dev/console", 5, 1)
    for number, module in enumerate(kernel.modules):
        archive.file(f"{MODULES}/{number:02}-{module.name}", module)
    binaries = [python]
    base = Path(sys.base_prefix)
    library = base / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    archive.file(str(python), python)
    binaries += archive.tree(str(library), library)
    for package in _PACKAGES:
        binaries += _add_package(archive, package)
    root = Path(__file__).parents[3]
    for part in _PROJECT:
        archive.tree(f"{_SITE}/{part}", root / part)
    for path in _needed_by(binaries):
        archive.file(str(path), Path(os.path.realpath(path)))
    return archive.close()


def _add_package(archive: Archive, name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    if origin.name.startswith("__init__."):
        return archive.tree(f"{_SITE}/{name}", origin.parent)
    archive.file(f"{_SITE}/{origin.name}", origin)
    return [origin]


def _needed_by(binaries: Iterable[Path]) -> set[Path]:
    """Shared libraries, by the names under which they are looked for."""
    shown = subprocess.run(
        ["ldd", *map(str, binaries)], capture_output=True, text=True, check=False
    ).stdout
    found = re.findall(r"(?:=> )?(/[^\s:]+\.so[^\s:]*) \(0x", shown)
    return {Path(path) for path in found}


class Archive:
    """A cpio archive in the making."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str) -> None:
        """A folder, and those above it."""
        if name not in ("", "/") and name not in self._names:
            self.folder(os.path.dirname(name))
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def character_device(self, name: str, major: int, minor: int) -> None:
        """A device node."""
        self._add(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def text(self, name: str, content: str, mode: int) -> None:
        """A file of this text."""
        self._add(name, stat.S_IFREG | mode, content.encode())

    def file(self, name: str, path: Path) -> None:
        """A copy of a file, with its time (compiled modules are checked against that)."""
        status = path.stat()
        self._add(name, stat.S_IFREG | 0o755, path.read_bytes(), int(status.st_mtime))

    def tree(self, name: str, path: Path) -> list[Path]:
        """A copy of what Python needs of a folder; the shared objects in it are returned."""
        shared = []
        for found in _python_files(path):
            self.file(f"{name}/{found.relative_to(path)}", found)
            if found.suffix == ".so":
                shared.append(found)
        return shared

    def close(self) -> bytes:
        """The whole archive."""
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(
        self,
        name: str,
        mode: int,
        content: bytes,
        time: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if name in self._names:
            return
        if mode:
            self.folder(os.path.dirname(name))
        self._names.add(name)
        raw = name.lstrip("/").encode() + b"\0"
        number = len(self._names)
        fields = (number, mode, 0, 0, 1, time, len(content), 0, 0, *device, len(raw), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]


def _python_files(folder: Path) -> Iterator[Path]:
    tag = sys.implementation.cache_tag
    for current, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if one not in _UNUSED and "config-3" not in one]
        for name in files:
            if name.endswith((".py", ".so", f"{tag}.pyc")):
                yield Path(current, name)
