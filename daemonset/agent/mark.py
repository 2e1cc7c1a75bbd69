"""The mark by which capture knows ztunnel's own packets: random, and kept for one boot.

Istio's is 1337 everywhere, and a container that may open raw sockets (which Kubernetes allows by
default) can set it and leave capture in the clear. This one is nobody's guess. Agent and ztunnel
may restart and must still agree, so it lies in a file that only root can read; after a reboot no
socket has the old one any more, and a new one is made.
"""

import contextlib
import os
import secrets
from pathlib import Path

from daemonset.agent.capture_rules import ANSWERS
from ztunnel.kernel import direct_rules

FILE_NAME = "packet-mark"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MarkError(Exception):
    """The file with the mark is unusable; the message names it."""


def packet_mark(run_dir: str | Path) -> int:
    """The mark of this boot, made and stored in `run_dir` when there is none yet.

    32 random bits that no rule takes for something else (see `is_fit`). Raises MarkError when the
    file is not ours alone, and OSError.
    """
    directory = Path(run_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / FILE_NAME
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    known = _read(path, boot)
    if known is not None:
        return known
    mark = secrets.randbits(32)
    while not is_fit(mark):
        mark = secrets.randbits(32)
    # Written aside and linked: of two that start at once the first one counts, for both.
    aside = directory / f"{FILE_NAME}.{secrets.token_hex(8)}"
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{boot} {mark:#010x}\n")
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    known = _read(path, boot)
    if known is None:
        raise MarkError(f"{path} was taken away while it was being written")
    return known


def is_fit(mark: int) -> bool:
    """Whether a mark can be ztunnel's: it is neither "no mark" nor one of those that everybody
    knows, all below 0x1000, and no other rule of a pod's namespace is about it. One that looked
    like an answer of the application would be delivered at once to the pod that sends it, one that
    looked like a verdict would pass for a connection that goes past the proxy."""
    return (
        mark & ~0xFFF != 0
        and mark & ANSWERS.mask != ANSWERS.mark
        and mark & direct_rules.TAG_MASK != direct_rules.TAG
    )


def _read(path: Path, boot: str) -> int | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise MarkError(f"{path} can be read or changed by others: remove it")
            fields = file.read(200).split()
    except FileNotFoundError:
        return None
    if len(fields) == 2 and fields[0] == boot:
        try:
            return int(fields[1], 16)
        except ValueError:
            pass  # damaged: replaced below like that of an earlier boot
    path.unlink(missing_ok=True)
    return None
