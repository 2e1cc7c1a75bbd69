"""The list that the CNI plugin reads while the agent is away. It survives a reboot of the node."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import trio

from daemonset.agent.book_source import BookSource
from daemonset.agent.enrolment import EnrolmentOptions

logger = logging.getLogger("daemonset.agent")

PAUSE = 0.5
"""Seconds between two writings: many objects change together."""


def write_list(path: Path, namespaces: Iterable[str]) -> None:
    """One name a line; a reader sees the old list or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for name in sorted(namespaces))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


async def keep_list(path: Path, source: BookSource, options: EnrolmentOptions) -> None:
    """Follow the book, until cancelled."""
    await source.wait_complete()
    before: frozenset[str] | None = None
    while True:
        changed = source.next_change()
        now = source.book.unenrolled_namespaces(options)
        if now != before:
            try:
                write_list(path, now)
                before = now
            except OSError as error:
                logger.error("cannot write %s: %s", path, error)
                _forget(path)
        await trio.sleep(PAUSE)
        await changed.wait()


def _forget(path: Path) -> None:
    """An old list could let a pod start uncaptured whose namespace has joined the mesh since."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.error("cannot remove %s either: %s", path, error)
