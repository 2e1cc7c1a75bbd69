"""Files that only their owner may read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path


class UnsafeFileError(Exception):
    """A file or folder of secrets that others can read or replace."""


def make_private_folder(path: Path) -> None:
    """Make a folder (0700), or check one that is there.

    Raises:
        UnsafeFileError: it belongs to another user, or others can look into it.
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(path, stat.S_IRWXG | stat.S_IRWXO)


def read_private(path: Path) -> bytes:
    """Read a secret.

    Raises:
        UnsafeFileError: it belongs to another user, or others can read it.
        OSError: it cannot be read.
    """
    _check(path, stat.S_IRWXG | stat.S_IRWXO)
    return path.read_bytes()


def _check(path: Path, forbidden: int) -> None:
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise UnsafeFileError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise UnsafeFileError(f"{path} is open to others (mode {mode:04o}): chmod go= it")


def write_private(path: Path, data: bytes) -> None:
    """Replace a file (0600) as a whole: nobody ever sees half of it, nor does a power cut.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def create_folder(path: Path, files: dict[str, bytes]) -> bool:
    """Create a folder (0700) with these files (0600), all at once.

    Returns:
        False if the folder was there already: then nothing of it is touched.

    Raises:
        OSError: it cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.mkdir(mode=0o700)
    try:
        for name, data in files.items():
            _write_new(temporary / name, data)
        _sync_folder(temporary)
        try:
            # Renaming onto a folder that holds something fails, which is what "create" needs.
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
            return False
        _sync_folder(path.parent)
        return True
    finally:
        if temporary.is_dir():
            for name in files:
                (temporary / name).unlink(missing_ok=True)
            temporary.rmdir()


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
