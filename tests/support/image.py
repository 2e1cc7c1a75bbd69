"""The image's recipe, read as an engine reads it, and the wheel that its second stage builds.

`python -m tests.support.image` builds that wheel, if it is not in the cache, and prints its path.
"""

from __future__ import annotations

import fcntl
import fnmatch
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "daemonset/manifests/Dockerfile"
WHEEL = "AMBIENTD_WHEEL"
_BUILD_SECONDS = 900.0
_KEPT = 4  # wheels of other states of the sources: of other branches, for one


@dataclass(frozen=True)
class Step:
    """One instruction of a stage, options left out."""

    stage: str
    instruction: str
    words: tuple[str, ...]


def steps() -> list[Step]:
    """The recipe; comments and line ends taken care of."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Step] = []
    stage = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, *words = line.split()
        plain = tuple(word for word in words if not word.startswith("--"))
        if instruction == "FROM":
            stage = plain[-1] if "AS" in plain else ""
        elif instruction == "COPY" and any(word.startswith("--from=") for word in words):
            [source] = [word.removeprefix("--from=") for word in words if "--from=" in word]
            found.append(Step(stage, "TAKE", (source, *plain)))
            continue
        elif instruction == "RUN":
            # Options of the instruction itself stand before the command.
            while words[0].startswith("--"):
                del words[0]
            plain = tuple(words)
        found.append(Step(stage, instruction, plain))
    return found


def copied(stage: str) -> list[str]:
    """What a stage takes from the source tree."""
    return [
        word
        for step in steps()
        if step.stage == stage and step.instruction == "COPY"
        for word in step.words[:-1]
    ]


def is_ignored(path: str) -> bool:
    """As an engine reads .dockerignore: the last line that matches decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if "**/" in line else prefixes
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


def context() -> list[str]:
    """Names of the files that an engine would be given."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [name for name in listed if not is_ignored(name) and (ROOT / name).is_file()]


def variables(stage: str) -> dict[str, str]:
    """What a stage sets for its commands."""
    return {
        name: value
        for step in steps()
        if step.stage == stage and step.instruction in ("ARG", "ENV")
        for name, _, value in (word.partition("=") for word in step.words)
    }


def build_wheel(folder: Path, more: Mapping[str, str]) -> Path:
    """The project's wheel as the second stage builds it, by this interpreter, in `folder`.

    Args:
        more: variables that are set otherwise than the recipe says.

    Raises:
        CalledProcessError: it cannot be built; what the build said is on standard error.
    """
    source = folder / "source"
    for name in context():
        if any(name == each or name.startswith(f"{each}/") for each in copied("wheels")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    [command] = [
        step.words
        for step in steps()
        if (step.stage, step.instruction, step.words[:2]) == ("wheels", "RUN", ("pip", "wheel"))
    ]
    own = [str(folder) if word == "/wheels" else word for word in command[1:]]
    subprocess.run(
        [sys.executable, "-m", "pip", *own, "--quiet", "--no-deps"],
        cwd=source,
        env={**os.environ, **variables("wheels"), **more},
        stdout=2,  # whoever calls this as a command wants the path alone
        check=True,
        timeout=_BUILD_SECONDS,
    )
    shutil.rmtree(source)
    [found] = folder.glob("*.whl")
    return found


def wheel(folder: Path) -> Path:
    """What AMBIENTD_WHEEL names (CI's is compiled); without it, as to compile takes time, one of
    plain Python, in `folder`. Raises CalledProcessError: see `build_wheel`."""
    if os.environ.get(WHEEL):
        return Path(os.environ[WHEEL])
    return build_wheel(folder, {"AMBIENTD_COMPILE": "0"})


@functools.cache
def compiled_wheel() -> Path:
    """The project's wheel with its hot rooms compiled, though without optimization, which takes
    most of the time and is the C compiler's business: what AMBIENTD_WHEEL names, else from the
    cache, where it stays until the sources change.

    Raises:
        CalledProcessError: see `build_wheel`.
    """
    if os.environ.get(WHEEL):
        return Path(os.environ[WHEEL])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(base) / "ambientd" / "wheels"
    home.mkdir(parents=True, exist_ok=True)
    made_of = hashlib.sha256(sys.version.encode())
    for name in (str(DOCKERFILE.relative_to(ROOT)), *sorted(context())):
        made_of.update(name.encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    kept = home / made_of.hexdigest()[:16]
    with open(home / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may start at once
        if not kept.exists():
            for broken_off in home.glob("tmp*"):
                shutil.rmtree(broken_off)
            with tempfile.TemporaryDirectory(dir=home) as folder:
                build_wheel(Path(folder), {"MYPYC_OPT_LEVEL": "0"})
                Path(folder).rename(kept)
                Path(folder).mkdir()  # to be cleaned up
            for old in sorted(home.glob("*/*.whl"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                shutil.rmtree(old.parent)
    [found] = kept.glob("*.whl")
    return found


if __name__ == "__main__":
    print(compiled_wheel())
