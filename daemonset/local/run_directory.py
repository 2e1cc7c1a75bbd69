"""Where the files of a running mesh lie, and how another terminal finds it.

One folder per mesh: its description (``mesh.json``), logs, sockets, the files that its pods see.
The owner holds a lock on it: a folder whose lock is free belongs to a mesh that is gone, and since
the kernel has removed everything else by then, deleting the folder is all that is left to do.
"""

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

SOCKET_PATH_LIMIT = 107
"""Bytes of sun_path less its final zero (unix(7))."""


class RunDirectoryError(Exception):
    """No such mesh, or one of that name is running already; the text says which."""


@dataclass(slots=True)
class Place:
    """A node or pod of a running mesh: descriptors of its namespaces, as the owner holds them."""

    net: int
    mnt: int
    uts: int
    node: str = ""
    addresses: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    """Name -> what it does now, in words."""


@dataclass(slots=True)
class Description:
    """What ``mesh.json`` holds: enough to enter a mesh, to look at it and to end it."""

    name: str
    pid: int
    folder: str
    pid_namespace: int = -1
    underlay: Place | None = None
    nodes: dict[str, Place] = field(default_factory=dict)
    pods: dict[str, Place] = field(default_factory=dict)
    processes: dict[str, str] = field(default_factory=dict)
    """The mesh's own processes: name -> what it does now, in words."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        underlay = value.pop("underlay")
        nodes, pods = value.pop("nodes"), value.pop("pods")
        return cls(
            **value,
            underlay=None if underlay is None else Place(**underlay),
            nodes={name: Place(**place) for name, place in nodes.items()},
            pods={name: Place(**place) for name, place in pods.items()},
        )


def base() -> Path:
    """Where this user's meshes are: ``AMBIENT_RUN_DIR``, else the system's place for such files."""
    chosen = os.environ.get("AMBIENT_RUN_DIR")
    if chosen:
        return Path(chosen).absolute()
    user_id = real_user_id()
    if user_id == 0:
        return Path("/run/ambient")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "ambient"
    return Path(tempfile.gettempdir()) / f"ambient-{user_id}"


def real_user_id() -> int:
    """The user as the machine knows it, also inside a user namespace of our own."""
    inside, outside, _ = Path("/proc/self/uid_map").read_text().split("\n")[0].split()
    own = os.getuid()
    return int(outside) if own == int(inside) else own


class RunDirectory:
    """The folder of one mesh, locked by its owner."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, name: str, under: Path | None = None) -> Self:
        """Make and lock the folder for mesh *name*; what a killed one left behind is removed.

        Args:
            under: instead of where this user's meshes are.

        Raises:
            RunDirectoryError: a mesh of that name is running, or the folder cannot be made.
        """
        path = (under or base()) / name
        try:
            _make_private(path.parent)
            path.mkdir(exist_ok=True, mode=0o700)
            lock = _try_lock(path)
        except OSError as error:
            raise RunDirectoryError(f"{path}: {error.strerror}") from error
        if lock is None:
            raise RunDirectoryError(
                f"a mesh named {name} is running already; `ambient down {name}` ends it"
            )
        _empty(path)
        return cls(path, lock)

    def folder(self, *parts: str) -> Path:
        """A folder inside, made when it is not there."""
        made = self.path.joinpath(*parts)
        made.mkdir(parents=True, exist_ok=True)
        return made

    def check_socket(self, path: Path) -> None:
        """Raises RunDirectoryError when the kernel cannot take this path for a Unix socket."""
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            raise RunDirectoryError(
                f"{path} is too long for a socket; set AMBIENT_RUN_DIR to a shorter folder"
            )

    def write(self, *parts: str, text: str) -> Path:
        """A file inside with this text, replaced in one step."""
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text)
        temporary.replace(path)
        return path

    def describe(self, description: Description) -> None:
        self.write("mesh.json", text=json.dumps(asdict(description), indent=1))

    def remove(self) -> None:
        """Delete the folder and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        with contextlib.suppress(OSError):  # other meshes of this user are still there
            self.path.parent.rmdir()


def running() -> Iterator[str]:
    """Names of the meshes of this user that are running."""
    if not base().is_dir():
        return
    for path in sorted(base().iterdir()):
        if path.is_dir() and not _is_free(path):
            yield path.name


def find(name: str | None) -> tuple[Path, Description]:
    """The folder and description of a running mesh; without a name, the only one there is.

    Raises:
        RunDirectoryError: there is no such mesh, or several to choose from.
    """
    names = list(running())
    if not names:
        raise RunDirectoryError("no mesh is running; start one with `ambient up FOLDER`")
    if name is None and len(names) > 1:
        raise RunDirectoryError(
            f"several meshes are running, choose with --mesh: {' '.join(names)}"
        )
    chosen = name or names[0]
    if chosen not in names:
        raise RunDirectoryError(f"no mesh named {chosen} is running; there is {', '.join(names)}")
    path = base() / chosen
    try:
        return path, Description.from_json(json.loads((path / "mesh.json").read_text()))
    except FileNotFoundError:
        raise RunDirectoryError(f"mesh {chosen} is still starting") from None


def remove_stale() -> list[str]:
    """Delete the folders of meshes that were killed; their names."""
    removed: list[str] = []
    if base().is_dir():
        _make_private(base())
        for path in sorted(base().iterdir()):
            lock = _try_lock(path) if path.is_dir() else None
            if lock is not None:
                RunDirectory(path, lock).remove()
                removed.append(path.name)
    return removed


def _make_private(path: Path) -> None:
    """A folder in a place that others may write to (/tmp) must be ours before it is trusted."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.lstat()
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        raise RunDirectoryError(f"{path} belongs to somebody else; set AMBIENT_RUN_DIR")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RunDirectoryError(f"{path} can be changed by others: chmod go-w it")


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_free(path: Path) -> bool:
    lock = _try_lock(path)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
