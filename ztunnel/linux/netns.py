"""Network namespaces: hold one by a descriptor, work inside it for a moment, come back.

A thread that is in a pod's namespace would open every further socket there, with that pod's
identity. So a namespace is only ever entered by a synchronous `with` block (nothing else can run in
this thread meanwhile), and a thread that cannot come back ends the whole process.
"""

import ctypes
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_NS_GET_NSTYPE = 0xB703

_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)


def _failed(action: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{action}: {os.strerror(number)}")


def _cannot_come_back() -> NoReturn:
    # No exception may be raised from here: a handler further up would go on in the wrong namespace.
    number = ctypes.get_errno()
    message = f"cannot return from a network namespace: {os.strerror(number)}; ending the process\n"
    os.write(2, message.encode())
    os._exit(70)


@dataclass(frozen=True, slots=True)
class NamespaceIdentity:
    """What makes two descriptors the same namespace: `st_dev` and `st_ino` of its nsfs file."""

    device: int
    inode: int

    def __str__(self) -> str:
        return f"net:[{self.inode}]"


def identity_of(fd: int) -> NamespaceIdentity:
    """The identity of the namespace behind an open descriptor. Raises OSError."""
    status = os.fstat(fd)
    return NamespaceIdentity(status.st_dev, status.st_ino)


def is_network_namespace(fd: int) -> bool:
    """Whether an open descriptor is a network namespace, and not a file or some other namespace."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False  # ENOTTY: no namespace at all


class Inside:
    """The calling thread is inside a namespace for as long as this `with` block lasts.

    The body must not await, and must not start threads: a new thread inherits the namespace.
    Blocks may be nested. Raises OSError (EPERM without CAP_SYS_ADMIN, EINVAL when the descriptor is
    no network namespace) on entry; on exit the process ends when it cannot come back.
    """

    __slots__ = ("_fd", "_home")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._home = -1

    def __enter__(self) -> None:
        self._home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        if _setns(self._fd, CLONE_NEWNET) != 0:
            error = _failed("setns")
            os.close(self._home)
            raise error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _setns(self._home, CLONE_NEWNET) != 0:
            _cannot_come_back()
        os.close(self._home)


class NetworkNamespace:
    """An open network namespace. Owns its descriptor; a namespace lives while somebody holds one.

    `path` is where it was found or mounted, for messages ("" when it came as a bare descriptor).
    """

    __slots__ = ("fd", "identity", "path")

    def __init__(self, fd: int, path: str = "") -> None:
        """Take ownership of `fd`. Raises OSError when it is not open."""
        self.identity = identity_of(fd)
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> "NetworkNamespace":
        """Open by path (`/var/run/netns/x`, `/proc/1/ns/net`). Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))

    @classmethod
    def named(cls, name: str, run_dir: str | Path = "/var/run/netns") -> "NetworkNamespace":
        """A namespace bind-mounted under `run_dir`, as `ip netns` does it. Raises OSError."""
        return cls.open(Path(run_dir) / name)

    @classmethod
    def current(cls) -> "NetworkNamespace":
        """The calling thread's namespace. Raises OSError."""
        return cls.open(_OWN)

    def duplicate(self) -> "NetworkNamespace":
        """A second owner of the same namespace. Raises OSError."""
        return NetworkNamespace(fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 0), self.path)

    def enter(self) -> Inside:
        """`with namespace.enter(): …` runs the (synchronous) body inside. See `Inside`."""
        return Inside(self.fd)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to this namespace for its whole life. Raises OSError."""
        with Inside(self.fd):
            return socket.socket(family, kind, protocol)

    def close(self) -> None:
        """Give the descriptor back. Closing twice is harmless."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> "NetworkNamespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NetworkNamespace {self.identity} {self.path or 'unnamed'}>"


def create() -> NetworkNamespace:
    """A new namespace without a name, which lives as long as its descriptor.

    Loopback is still down in it (see `bring_up`). Raises OSError (EPERM without CAP_SYS_ADMIN).
    """
    with NetworkNamespace.current() as home, home.enter():
        # The enclosing block brings the thread back: entering "home" itself is a no-op.
        if _unshare(CLONE_NEWNET) != 0:
            raise _failed("unshare(CLONE_NEWNET)")
        return NetworkNamespace.current()


def bring_up(interface: str) -> None:
    """Set an interface of the calling thread's namespace up (for `lo`). Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", interface.encode(), 0)
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(
            control, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags | _IFF_UP)
        )


def sysctl(name: str, proc: str | Path = "/proc") -> str:
    """Read a network sysctl of the calling thread's namespace, e.g. `net.ipv4.ip_forward`.

    Raises OSError (ENOENT when this kernel has no such setting).
    """
    return Path(proc, "sys", *name.split(".")).read_text(encoding="ascii").strip()


def set_sysctl(name: str, value: str | int, proc: str | Path = "/proc") -> None:
    """Write a network sysctl of the calling thread's namespace. Raises OSError.

    A container's own /proc/sys is read-only; the node's /proc, mounted into it, is not, and it
    shows the same namespace.
    """
    Path(proc, "sys", *name.split(".")).write_text(f"{value}\n", encoding="ascii")


def has_ipv6() -> bool:
    """Whether the calling thread's namespace speaks IPv6 (`lo` has it and it is not disabled)."""
    try:
        return sysctl("net.ipv6.conf.lo.disable_ipv6") == "0"
    except FileNotFoundError:
        return False
