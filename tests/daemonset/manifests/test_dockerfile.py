"""The image's recipe. It needs a container engine to be carried out as a whole; what it does is
tried here step by step, on just the files that it copies."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import yaml

from tests.support import image
from tests.support.image import DOCKERFILE, ROOT, copied, is_ignored, steps, variables
from tests.support.kube.manifests import MANIFESTS
from tests.support.requirements import without_compiler

MACHINES = {"gcc": None, "aarch64-linux-gnu-gcc": 183}  # of ELF; None: this machine's


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that an engine would be given."""
    folder = tmp_path_factory.mktemp("context")
    for name in image.context():
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
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the second stage would build if it were not told to compile."""
    return image.build_wheel(tmp_path_factory.mktemp("plain"), {"AMBIENTD_COMPILE": "0"})


@pytest.fixture(scope="module")
def compiled_wheel() -> Path:
    """What it builds, as fast as that can be had."""
    missing = without_compiler()
    if missing is not None:
        pytest.skip(missing)
    return image.compiled_wheel()


def hot_rooms(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What setup.py would compile."""
    builder = SimpleNamespace(setup=lambda **options: None)
    monkeypatch.setitem(sys.modules, "setuptools", cast(ModuleType, builder))
    monkeypatch.setenv("AMBIENTD_COMPILE", "0")
    found: list[str] = runpy.run_path(str(ROOT / "setup.py"))["hot_rooms"]()
    return set(found)


def test_the_second_stage_compiles_and_the_last_one_says_so() -> None:
    assert variables("wheels")["AMBIENTD_COMPILE"] == "1"
    assert variables("wheels")["MYPYC_OPT_LEVEL"] == "3"
    [install] = [
        step.words for step in steps() if (step.stage, step.instruction) == ("wheels", "RUN")
    ][:1]
    assert "gcc" in install
    [run] = [step.words for step in steps() if (step.stage, step.instruction) == ("", "RUN")]
    # A shell's `a && b | c` fails where c finds nothing; and the last stage has no compiler.
    check = ("&&", "python3", "-m", "ztunnel", "version", "|", "grep", "compiled")
    assert run[-len(check) :] == check
    assert "gcc" not in run


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute where nothing else runs, and it is not in the cache
def test_the_wheel_has_every_hot_room_compiled(
    compiled_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-linux_" in compiled_wheel.name
    rooms = hot_rooms(monkeypatch)
    assert len(rooms) > 30
    with zipfile.ZipFile(compiled_wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    suffix = EXTENSION_SUFFIXES[0]
    assert {name.removesuffix(".py") + suffix for name in rooms} == {
        name for name in names if name.startswith("ztunnel/") and name.endswith(".so")
    }
    assert version_of(tmp_path).endswith("(compiled)")


def version_of(folder: Path) -> str:
    """What the last stage asks of what it has installed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ztunnel", "version"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_a_plain_wheel_is_for_every_machine_and_whole(plain_wheel: Path, tmp_path: Path) -> None:
    assert plain_wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(plain_wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert not [name for name in names if name.startswith(("tests", "perf")) or ".so" in name]
    for package in ("ztunnel", "daemonset"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert here - names == set()
    assert "daemonset/local/examples/shop/mesh/nodes.yaml" in names
    assert version_of(tmp_path).endswith("(plain Python)")
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
