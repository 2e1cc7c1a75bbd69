"""The image's recipe. It needs a container engine to be carried out as a whole; what it does is
tried here step by step, on just the files that it copies."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.kube.manifests import MANIFESTS
from tests.support.requirements import without_compiler

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = MANIFESTS / "Dockerfile"
MACHINES = {"gcc": None, "aarch64-linux-gnu-gcc": 183}  # of ELF; None: this machine's


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


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that an engine would be given."""
    folder = tmp_path_factory.mktemp("context")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        if not is_ignored(name) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_context_holds_what_is_copied_and_little_else(context: Path) -> None:
    stages = {step.stage for step in steps()}
    wanted = [name for stage in stages for name in copied(stage)]
    assert wanted
    for name in wanted:
        assert (context / name).exists(), name
    top = {path.name for path in context.iterdir()}
    assert top == {Path(name).parts[0] for name in wanted}
    assert is_ignored(".git/config")
    assert is_ignored(".venv/bin/python")
    assert is_ignored("ztunnel/http2/connection.cpython-312-x86_64-linux-gnu.so")
    assert is_ignored("daemonset/__pycache__/cli.cpython-312.pyc")


def test_the_last_stage_has_wheels_and_the_plugin_and_nothing_else() -> None:
    last = [step for step in steps() if step.stage == ""]
    assert not [step for step in last if step.instruction in ("COPY", "ADD")]
    [taken] = [step.words for step in last if step.instruction == "TAKE"]
    assert taken == ("plugin", "/source/ambient-cni", "/opt/ambient/ambient-cni")
    [run] = [step.words for step in last if step.instruction == "RUN"]
    assert run[:2] == ("pip", "install")
    text = DOCKERFILE.read_text()
    assert "--no-index" in text  # what was built is what is installed
    assert "ENV" in text
    # The same base for wheels and for what they are installed into.
    bases = [step.words[0] for step in steps() if step.instruction == "FROM"]
    assert bases[1] == bases[2]
    # Nothing that would hold for one machine alone.
    assert "amd64" not in re.sub(r"#.*", "", text)


@pytest.mark.parametrize("compiler", MACHINES)
def test_the_plugin_is_built_for_both_machines(
    context: Path, tmp_path: Path, compiler: str
) -> None:
    missing = without_compiler()
    if missing is None and shutil.which(compiler) is None:
        missing = f"no {compiler} (Debian: gcc-aarch64-linux-gnu and libc6-dev-arm64-cross)"
    if missing is not None:
        pytest.skip(missing)
    [source] = copied("plugin")
    runs = [step.words for step in steps() if (step.stage, step.instruction) == ("plugin", "RUN")]
    [make] = [words for words in runs if words[0] == "make"]
    assert make[: make.index("&&")] == ("make", "-C", "/source", "OUT=/source", "CC=gcc")
    folder = context / source
    command = ["make", "-C", str(folder), f"OUT={tmp_path}", f"CC={compiler}"]
    subprocess.run(command, check=True, timeout=120)
    data = (tmp_path / "ambient-cni").read_bytes()
    kind, machine = struct.unpack_from("<HH", data, 16)
    wanted = MACHINES[compiler]
    assert kind == 2
    if wanted is None:
        request = '{"cniVersion": "1.0.0"}'
        done = subprocess.run(
            [str(tmp_path / "ambient-cni")],
            input=request,
            env={"CNI_COMMAND": "VERSION"},
            capture_output=True,
            text=True,
        )
        assert "supportedVersions" in done.stdout
    else:
        assert machine == wanted
    # No interpreter is asked for: it runs on hosts that have none of our libraries.
    offset, size, number = (
        struct.unpack_from("<Q", data, 32)[0],
        struct.unpack_from("<H", data, 54)[0],
        struct.unpack_from("<H", data, 56)[0],
    )
    kinds = {struct.unpack_from("<I", data, offset + n * size)[0] for n in range(number)}
    assert 3 not in kinds


@pytest.fixture(scope="module")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the second stage builds, from what it copies."""
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    source.mkdir()
    for name in copied("wheels"):
        path = context / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), "."],
        cwd=source,
        check=True,
        timeout=240,
    )
    [found] = folder.glob("*.whl")
    return found


def test_the_wheel_is_for_every_machine_and_whole(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert not [name for name in names if name.startswith(("tests", "perf")) or ".so" in name]
    for package in ("ztunnel", "daemonset"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert here - names == set()
    assert "daemonset/local/examples/shop/mesh/nodes.yaml" in names
    run = (
        "import sys, runpy; sys.argv[0:1] = []; runpy.run_module(sys.argv[0], {}, '__main__', True)"
    )
    for command in (
        ["daemonset.cli", "validate", str(tmp_path / "daemonset/local/examples/shop")],
        ["daemonset.cli", "control-plane", "--help"],
        ["daemonset.cli", "node-agent", "--help"],
        ["ztunnel", "help"],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", run, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stderr)
    [entry] = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "ambient = daemonset.cli:main" in entry.read_text()


def test_the_manifests_run_what_is_in_the_image() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commands = []
    for path in MANIFESTS.rglob("*.yaml"):
        for item in yaml.safe_load_all(path.read_text()):
            for each in (
                ((item or {}).get("spec") or {})
                .get("template", {})
                .get("spec", {})
                .get("containers", ())
            ):
                if each.get("image", "").startswith("ambientd"):
                    assert each["image"] == f"ambientd:{version}", path
                    commands.append([*each.get("command", ()), *each.get("args", ())])
    assert f"ambientd:{version}" in DOCKERFILE.read_text()
    assert {command[0] for command in commands} == {"ambient", "python3"}
    assert [command for command in commands if command[0] == "python3"] == [
        ["python3", "-m", "ztunnel"]
    ]
    options = {word for command in commands for word in command}
    assert "--cni-plugin=/opt/ambient/ambient-cni" in options
