"""The system calls that make and enter namespaces, for Python 3.11 (``os.setns`` came with 3.12).

Every function raises ``OSError`` with the call's name in its text. Namespaces belong to the calling
*thread*: callers use a thread that ends afterwards, so that no other code ever runs in a namespace
by accident.
"""

import ctypes
import os

# <linux/sched.h>
CLONE_FS = 0x0000_0200
CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# <linux/mount.h>
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2))."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace that *descriptor* holds (setns(2))."""
    _check(_libc.setns(descriptor, kind), f"setns({kind:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); *kind* is the file system's type, None for bind mounts."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(
        _libc.mount(*arguments, ctypes.c_ulong(flags), None if data is None else data.encode()),
        f"mount {source} on {target}",
    )


def unmount(target: str) -> None:
    """umount2(2) with MNT_DETACH: gone from sight at once, freed when nobody uses it."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def set_hostname(name: str) -> None:
    """sethostname(2): the name that programs of this UTS namespace see."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), f"sethostname {name}")
