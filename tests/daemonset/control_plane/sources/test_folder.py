"""Watching a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio

from daemonset.control_plane.sources.folder import FolderError, FolderSource
from daemonset.control_plane.sources.last_good import LastGood
from daemonset.control_plane.sources.scan import FolderScanner

NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: %s}\n"


def write(path: Path, *nodes: str) -> None:
    path.write_text("---\n".join(NODE % name for name in nodes))


def nodes(source: FolderSource) -> list[str]:
    return sorted(source.state.objects.nodes)


async def next_change(source: FolderSource) -> None:
    with trio.fail_after(30):
        await source.next_change(interval=0.01)


async def test_changes_are_taken_one_step_at_a_time(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a")
    source = FolderSource(tmp_path)
    source.load()
    assert nodes(source) == ["a"]
    write(tmp_path / "b.yml", "b", "c")
    await next_change(source)
    assert nodes(source) == ["a", "b", "c"]
    (tmp_path / "sub").mkdir()
    os.rename(tmp_path / "b.yml", tmp_path / "sub/d.json")
    await next_change(source)
    assert nodes(source) == ["a", "b", "c"]
    (tmp_path / "a.yaml").unlink()
    await next_change(source)
    assert nodes(source) == ["b", "c"]


async def test_a_broken_file_is_logged_once_and_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path / "a.yaml", "a")
    source = FolderSource(tmp_path)
    source.load()
    (tmp_path / "a.yaml").write_text("a: [")
    await next_change(source)
    assert nodes(source) == ["a"]
    write(tmp_path / "b.yaml", "b")
    await next_change(source)
    assert nodes(source) == ["a", "b"]
    complaints = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert complaints == [
        "a.yaml:1: did not find expected node content "
        "(the last good version of this file stays in force)"
    ]
    write(tmp_path / "a.yaml", "c")
    await next_change(source)
    assert nodes(source) == ["b", "c"]
    assert "a.yaml has no errors any more" in [r.getMessage() for r in caplog.records]


def test_other_names_are_not_looked_at(tmp_path: Path) -> None:
    for name in (".hidden.yaml", "a.yaml.swp", "README.md", "a.yaml~"):
        (tmp_path / name).write_text("a: [")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/a.yaml").write_text("a: [")
    os.mkfifo(tmp_path / "pipe.yaml")
    source = FolderSource(tmp_path)
    source.load()
    assert source.state.problems == ()


def test_a_mounted_config_map_is_a_folder_of_links(tmp_path: Path) -> None:
    (tmp_path / "..1").mkdir()
    write(tmp_path / "..1/a.yaml", "a")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    source = FolderSource(tmp_path)
    source.load()
    assert nodes(source) == ["a"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="No such file"):
        FolderSource(tmp_path / "missing").load()


def test_a_file_that_was_never_good_makes_the_folder_unusable(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(FolderError) as caught:
        FolderSource(tmp_path).load()
    assert [problem.file for problem in caught.value.problems] == ["a.yaml"]
    FolderSource(tmp_path).load(refuse_errors=False)


def test_good_versions_outlive_the_process(tmp_path: Path) -> None:
    folder, copies = tmp_path / "folder", LastGood(tmp_path / "copies")
    folder.mkdir()
    write(folder / "a.yaml", "a")
    write(folder / "b.yaml", "b")
    FolderSource(folder, copies).load()
    (folder / "a.yaml").write_text("a: [")
    source = FolderSource(folder, copies)
    source.load()
    assert nodes(source) == ["a", "b"]
    assert len(source.state.problems) == 1


async def test_copies_of_deleted_files_are_deleted(tmp_path: Path) -> None:
    folder, copies = tmp_path / "folder", LastGood(tmp_path / "copies")
    folder.mkdir()
    write(folder / "a.yaml", "a")
    source = FolderSource(folder, copies)
    source.load()
    assert copies.read("a.yaml") is not None
    (folder / "a.yaml").unlink()
    await next_change(source)
    assert copies.read("a.yaml") is None


def test_a_change_counts_once_it_has_come_to_rest(tmp_path: Path) -> None:
    scanner = FolderScanner(tmp_path)
    assert scanner.first() == {}
    path = tmp_path / "a.yaml"
    path.write_text("half")
    assert scanner.changes() == {}
    path.write_text("half and more")
    assert scanner.changes() == {}
    assert scanner.changes() == {"a.yaml": b"half and more"}
    assert scanner.changes() == {}


def test_a_file_that_is_gone_for_a_moment_is_not_gone(tmp_path: Path) -> None:
    """Editors that delete and write anew must not take a policy away."""
    path = tmp_path / "a.yaml"
    path.write_text("1")
    scanner = FolderScanner(tmp_path)
    scanner.first()
    path.unlink()
    assert scanner.changes() == {}
    path.write_text("22")
    assert scanner.changes() == {}
    assert scanner.changes() == {"a.yaml": b"22"}
    path.unlink()
    assert scanner.changes() == {}
    assert scanner.changes() == {"a.yaml": None}


def test_changes_wait_for_each_other_but_not_for_ever(tmp_path: Path) -> None:
    scanner = FolderScanner(tmp_path)
    scanner.first()
    (tmp_path / "calm.yaml").write_text("x")
    taken: dict[str, bytes | None] = {}
    for number in range(30):
        (tmp_path / "restless.yaml").write_text("y" * number)
        taken = scanner.changes()
        if taken:
            break
    assert taken == {"calm.yaml": b"x"}
    assert number > 10


def test_a_folder_that_vanishes_keeps_everything_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.yaml").write_text("x")
    scanner = FolderScanner(folder)
    scanner.first()
    os.rename(folder, tmp_path / "elsewhere")
    for _ in range(3):
        assert scanner.changes() == {}
    assert len(caplog.records) == 1
    os.rename(tmp_path / "elsewhere", folder)
    assert scanner.changes() == {}


def test_a_file_that_cannot_be_read_keeps_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x")
    scanner = FolderScanner(tmp_path)
    scanner.first()
    path.write_text("longer")
    scanner.changes()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert scanner.changes() == {}
        assert scanner.changes() == {}
    assert [record.getMessage() for record in caplog.records] == [
        "a.yaml cannot be read, what was read of it last stays in force: Permission denied"
    ]
    assert scanner.changes() == {"a.yaml": b"longer"}
