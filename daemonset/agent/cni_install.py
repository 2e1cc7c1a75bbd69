"""Puts the CNI plugin onto the node, keeps it there, and takes it away again.

Other programs write the same folders: whatever is written here appears whole or not at all (by
rename), and what somebody else has changed is looked for again and again.
"""

import logging
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import trio

from daemonset.agent.cni_chain import (
    PLUGIN,
    SUFFIXES,
    ChainError,
    Entry,
    chained,
    plugins_in,
    unchained,
)

logger = logging.getLogger("daemonset.agent.cni")

LOOK = 2.0
"""Seconds between two looks at the folders."""


@dataclass(frozen=True, slots=True)
class CniFolders:
    """Where things are on the node: `plugin` is the program to be installed, `binaries` and
    `configurations` the container runtime's folders."""

    plugin: Path
    binaries: Path
    configurations: Path


class CniInstaller:
    """Our plugin as the last of the chain that the container runtime uses."""

    def __init__(self, folders: CniFolders, entry: Entry) -> None:
        self._folders = folders
        self._entry = entry
        self._lock = threading.Lock()  # an installation that is under way outlives its cancellation
        self._over = False
        self.complaint = "has not been installed yet"
        """Why pods that start now may not be captured at once; "" when all is well."""
        self.configuration: tuple[str, tuple[str, ...]] = ("", ())
        """The file that we are chained into, and the plugins in it, in order."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Install, and bring back what others take away, until cancelled. Never raises else."""
        while True:
            before = self.complaint
            try:
                changes = await trio.to_thread.run_sync(self.install)
                self.complaint = ""
            except (OSError, ChainError) as error:
                changes = []
                self.complaint = str(error)
                if self.complaint != before:
                    logger.error("pods that start are not captured at once: %s", error)
            for change in changes:
                logger.info("%s", change)
            if not self.complaint and before:
                task_status.started()
            await trio.sleep(LOOK)

    def install(self) -> list[str]:
        """Makes what is there as it should be; what had to be changed, in words.

        Raises:
            OSError: a folder cannot be read or written.
            ChainError: there is no configuration to be a part of (yet).
        """
        with self._lock:
            return [] if self._over else self._install()

    def _install(self) -> list[str]:
        changes: list[str] = []
        # The program first: a configuration that names a missing one stops every pod.
        target = self._folders.binaries / PLUGIN
        wanted = self._folders.plugin.read_bytes()
        if not target.is_file() or target.read_bytes() != wanted:
            _replace(target, wanted, 0o755)
            changes.append(f"installed {target}")
        path = self._first()
        text = path.read_text("utf-8")
        try:
            name, new = chained(path.name, text, self._entry)
        except ChainError as error:
            raise ChainError(f"{path}: {error}") from error
        if (name, new) != (path.name, text):
            _replace(path.with_name(name), new.encode(), path.stat().st_mode & 0o777)
            changes.append(f"chained into {path.with_name(name)}")
            if name != path.name:
                path.unlink()
        self.configuration = (name, plugins_in(new))
        return changes

    def leftovers(self) -> list[str]:
        """What of the plugin is still on the node, in words; raises nothing."""
        found = []
        try:
            found += [
                f"the CNI plugin is still named in {path}"
                for path in self._configurations()
                if PLUGIN in plugins_in(path.read_text("utf-8", errors="replace"))
            ]
        except OSError as error:
            found.append(f"cannot look for the CNI plugin: {error}")
        target = self._folders.binaries / PLUGIN
        if target.exists():
            found.append(f"the CNI plugin {target}")
        return found

    def withdraw(self) -> list[str]:
        """Takes our plugin out of every configuration, and then its program away, for good.

        Raises OSError; what has been done until then is done, and asking again is harmless.
        """
        with self._lock:
            self._over = True
            return self._withdraw()

    def _withdraw(self) -> list[str]:
        changes: list[str] = []
        for path in self._configurations():
            try:
                text = path.read_text("utf-8")
                new = unchained(text)
            except (ChainError, UnicodeDecodeError):
                continue  # not one that could have us
            if new != text:
                _replace(path, new.encode(), path.stat().st_mode & 0o777)
                changes.append(f"taken out of {path}")
        target = self._folders.binaries / PLUGIN
        if target.exists():
            target.unlink()
            changes.append(f"removed {target}")
        return changes

    def _configurations(self) -> Iterator[Path]:
        for path in sorted(self._folders.configurations.iterdir()):
            if path.suffix in SUFFIXES and path.is_file():
                yield path

    def _first(self) -> Path:
        """The one that the runtime uses: the first by name that is one at all."""
        unusable = ""
        for path in self._configurations():
            try:
                chained(path.name, path.read_text("utf-8"), self._entry)
                return path
            except (ChainError, UnicodeDecodeError) as error:
                unusable = unusable or f"; {path}: {error}"
        where = self._folders.configurations
        raise ChainError(f"there is no network configuration in {where} (yet){unusable}")


def _replace(path: Path, data: bytes, mode: int) -> None:
    # The name has none of the suffixes: no runtime takes it for a configuration meanwhile.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
