import sys
from pathlib import Path

import pytest

from daemonset.local import demo_texts


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment of its own, with the command in it."""
    folder = tmp_path / "project" / ".venv" / "bin"
    folder.mkdir(parents=True)
    command = folder / "ambient"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path / "project")
    return folder


def test_commands_are_printed_as_they_can_be_typed(
    interpreter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_texts.program() == ".venv/bin/ambient"
    monkeypatch.chdir("/")
    assert demo_texts.program() == str(interpreter / "ambient")
    monkeypatch.setenv("PATH", str(interpreter))
    assert demo_texts.program() == "ambient"
    (interpreter / "ambient").unlink()
    assert demo_texts.program() == f"{interpreter}/python -m daemonset.cli"


def test_another_command_of_that_name_is_not_ours(
    interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "ambient"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo_texts.program() == ".venv/bin/ambient"
