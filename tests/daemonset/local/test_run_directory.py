import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemonset.local import run_directory
from daemonset.local.run_directory import Description, Place, RunDirectory, RunDirectoryError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "run"
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(base))
    return base


def test_a_mesh_is_found_while_it_runs(place: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no mesh is running"):
        run_directory.find(None)
    run = RunDirectory.create("one")
    with pytest.raises(RunDirectoryError, match="one is still starting"):
        run_directory.find(None)
    described = Description("one", os.getpid(), "/yaml", underlay=Place(1, 2, 3))
    described.pods["shop/web"] = Place(4, 5, 6, "node-1", ["10.0.0.1"], {"A": "b"}, {"c": "runs"})
    run.describe(described)
    assert run_directory.find(None) == (place / "one", described)
    with pytest.raises(RunDirectoryError, match="no mesh named two is running; there is one"):
        run_directory.find("two")
    with pytest.raises(RunDirectoryError, match="a mesh named one is running already"):
        RunDirectory.create("one")
    run.remove()
    assert not place.exists()


def test_of_several_meshes_one_must_be_chosen() -> None:
    runs = [RunDirectory.create(name) for name in ("one", "two")]
    with pytest.raises(RunDirectoryError, match="choose with --mesh: one two"):
        run_directory.find(None)
    for run in runs:
        run.remove()


def test_what_a_killed_mesh_left_is_removed(place: Path) -> None:
    code = (
        "import os\nfrom daemonset.local.run_directory import RunDirectory\n"
        "RunDirectory.create('dead').write('logs', 'x.log', text='x')\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (place / "dead" / "logs" / "x.log").exists()
    assert list(run_directory.running()) == []
    alive = RunDirectory.create("alive")
    assert run_directory.remove_stale() == ["dead"]
    assert list(run_directory.running()) == ["alive"]
    alive.remove()


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    run = RunDirectory.create("x" * 60)
    with pytest.raises(RunDirectoryError, match="set AMBIENT_RUN_DIR to a shorter folder"):
        run.check_socket(run.path / ("n" * 60))
    run.remove()


def test_the_user_is_known_as_the_machine_knows_it() -> None:
    assert run_directory.real_user_id() == os.getuid()


def test_a_folder_that_others_can_change_is_not_used(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(RunDirectoryError, match="can be changed by others"):
        RunDirectory.create("one")
