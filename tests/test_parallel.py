"""A run in two processes hands out tests as it should, and its end says what that of one says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, plugins: str, *arguments: str) -> tuple[int, str]:
    """pytest in two processes on what is in that folder, with some of `tests.support` and as in CI:
    exit status, and what it said."""
    names = [f"tests.support.{each}" for each in ("parallel", *plugins.split())]
    (folder / "conftest.py").write_text(f"pytest_plugins = {names}\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -ra\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", *arguments],
        cwd=folder,
        env=os.environ | {"CI": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout


def test_files_stay_together_and_so_do_those_of_the_cluster(tmp_path: Path) -> None:
    for name in ("cluster/test_a", "cluster/test_b", "cluster/test_c", "test_d", "test_e"):
        file = tmp_path / "tests" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"def test_{each}(): pass\n" for each in "xyz"))
    code, said = run(tmp_path, "", "-v")
    assert code == 0, said
    ran = re.findall(r"\[(gw\d)\].* PASSED tests/(\S+)\.py::", said)
    assert len(ran) == 15
    where: dict[str, set[str]] = {}
    for process, file_name in ran:
        where.setdefault(file_name.partition("/")[0], set()).add(process)
    assert where.keys() == {"cluster", "test_d", "test_e"}
    assert {len(processes) for processes in where.values()} == {1}, ran
    assert where["cluster"] != where["test_d"], "the other process begins with what comes next"


def test_the_end_says_what_failed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text(f"def test_it(): assert not '{name} is wrong'\n")
    code, said = run(tmp_path, "last_words")
    assert code == pytest.ExitCode.TESTS_FAILED
    end = said[said.index("WHAT FAILED, IN SHORT") :].splitlines()[1:]
    assert sorted(end[:2]) == [
        f"test_{name}.py::test_it: AssertionError: assert not '{name} is wrong'" for name in "ab"
    ]
    assert "2 failed" in end[2]
    assert len(end) == 3, end


def test_the_end_says_what_was_left_out_and_where_nothing_may_be_it_fails(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "def test_one(): pytest.skip('no tool')\n"
        "def test_two(): pytest.skip('no tool')\n"
        "def test_good(): pass\n"
    )
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    code, said = run(tmp_path, "requirements")
    assert code == pytest.ExitCode.TESTS_FAILED
    end = said[said.index("NOT EVERYTHING WAS TESTED, AND HERE IT MUST BE") :]
    assert "2 tests: Skipped: no tool\n" in end
    assert "1 tests: Skipped: could not import 'no_such_module'" in end
