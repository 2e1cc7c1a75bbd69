import secrets
from pathlib import Path

import pytest

from daemonset.agent.mark import FILE_NAME, MarkError, packet_mark


def test_it_is_kept_and_private(tmp_path: Path) -> None:
    mark = packet_mark(tmp_path / "run")
    assert packet_mark(tmp_path / "run") == mark
    assert packet_mark(tmp_path / "other") != mark
    assert mark & ~0xFFF
    assert (tmp_path / "run" / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "unfit",
    [0, 0x539, 0xFFF, 0x12345111, 0x50000001, 0x5F400C40, 0x5FFFFFFF],
    ids=lambda mark: f"{mark:#x}",
)
def test_one_that_other_rules_are_about_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfit: int
) -> None:
    drawn = iter([unfit, 0x60001112])
    monkeypatch.setattr(secrets, "randbits", lambda _: next(drawn))
    assert packet_mark(tmp_path) == 0x60001112


@pytest.mark.parametrize("content", ["another-boot 0x12345678\n", "", "garbage", "boot mark\n"])
def test_that_of_another_boot_is_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    (tmp_path / FILE_NAME).chmod(0o600)
    mark = packet_mark(tmp_path)
    assert mark != 0x12345678
    assert packet_mark(tmp_path) == mark


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    packet_mark(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().split()[0] + " many\n")
    assert packet_mark(tmp_path) == packet_mark(tmp_path)


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    packet_mark(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(MarkError, match="can be read or changed by others"):
        packet_mark(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / "elsewhere").touch(mode=0o600)
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        packet_mark(tmp_path)
