import io

import pytest

from daemonset.local.terminal import Terminal

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def test_nothing_is_wider_than_the_terminal(narrow: Screen) -> None:
    terminal = Terminal(narrow)
    terminal.say(LONG)
    terminal.good(LONG)
    with terminal.progress(LONG):
        open_line = narrow.getvalue().rpartition("\n")[2]
    assert open_line.startswith("  … one two")
    assert len(open_line) <= 49
    assert narrow.getvalue().endswith("\r\033[K")
    assert all(len(line) <= 60 for line in narrow.getvalue().splitlines())  # with its colours


def test_a_file_gets_no_colours_and_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    out = io.StringIO()
    terminal = Terminal(out)
    with terminal.progress(LONG):
        terminal.good(LONG)
    assert out.getvalue() == f"  … {LONG}\n  ✓ {LONG}\n"


def test_colours_can_be_refused(narrow: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    Terminal(narrow).bad("no")
    assert narrow.getvalue() == "  ✗ no\n"
