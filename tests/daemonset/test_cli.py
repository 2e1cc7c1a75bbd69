import re
from pathlib import Path

import pytest

from daemonset import cli
from daemonset.agent import command as node_agent

COMMANDS = [name for names in cli._ROOMS.values() for name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"ambient {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_explained(command: str) -> None:
    [choices] = [action.choices for action in cli.parser(command)._actions if action.choices]
    unexplained = [
        option.option_strings
        for option in choices[command]._actions  # type: ignore[index]
        if option.option_strings and not option.help
    ]
    assert not unexplained


def test_the_node_agents_variables_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """All of the environment that it reads."""
    read = re.findall(r'environment\("([A-Z_]+)"', Path(node_agent.__file__).read_text())
    with pytest.raises(SystemExit):
        cli.main(["node-agent", "--help"])
    said = capsys.readouterr().out
    assert len(read) > 5
    assert not [name for name in read if name not in said]


def test_help_names_every_command_and_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "ambient demo" in text
    assert all(f"\n    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("words", [[], ["no-such-command"]])
def test_what_is_no_command_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: ambient" in capsys.readouterr().err


def test_the_command_that_runs_gives_the_exit_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["validate", "/no/such/folder"]) == 1
    assert "/no/such/folder" in capsys.readouterr().err


def test_ctrl_c_before_anything_began_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "\n"
