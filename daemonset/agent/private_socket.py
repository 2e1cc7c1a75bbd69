"""UNIX sockets that only root can open, at a path that the next agent takes over."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def listening(path: Path, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A non-blocking listener at `path`, gone with the block. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "is in the way and is no socket", str(path))
        path.unlink()  # left behind, or of an agent that this one replaces
    except FileNotFoundError:
        pass
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.setblocking(False)
        # Private from the start: bind takes the mode over.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(128)
        identity = os.stat(path)
        try:
            yield listener
        finally:
            _unlink_own(path, identity)


def _unlink_own(path: Path, identity: os.stat_result) -> None:
    """Another agent may have put its own socket there by now."""
    try:
        if os.path.samestat(os.stat(path), identity):
            path.unlink()
    except FileNotFoundError:
        pass
