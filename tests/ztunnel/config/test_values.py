"""Single values, from people and from a fuzzer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.config import values
from ztunnel.config.load import load_with
from ztunnel.config.rules import automatic_workers, termination_deadline


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("0", 0),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1us", 1e-6),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "-5s", "5sx", "1e3s", "٣s", "1000000h"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="allowed is a duration"):
        values.duration(text)


@pytest.mark.parametrize(
    ("text", "pair"), [("localhost:53", ("localhost", 53)), ("[::1]:53", ("::1", 53))]
)
def test_host_and_port(text: str, pair: tuple[str, int]) -> None:
    assert values.host_and_port(text) == pair


@pytest.mark.parametrize("text", ["", "x", ":53", "::1:53", "x:0", "x:65536", "x:٣"])
def test_host_and_port_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|brackets"):
        values.host_and_port(text)


@pytest.mark.parametrize("text", ["", "-1", "0%", "101%", "%", "two", "1.5"])
def test_worker_threads_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="allowed is a"):
        values.worker_threads(text, 4)


@given(st.text())
@pytest.mark.parametrize(
    "parse",
    [
        values.boolean,
        values.duration,
        values.cpu_quantity,
        values.host_and_port,
        lambda text: values.integer(text, 0, 9),
        lambda text: values.worker_threads(text, 4),
    ],
)
def test_any_text_is_a_value_or_a_value_error(parse: Callable[[str], object], text: str) -> None:
    try:
        result = parse(text)
    except ValueError:
        return
    assert result is not None


NAMES = [variable.name for variable in load_with({}, None, 4)[0].variables.values()]


@given(
    st.dictionaries(
        st.sampled_from(NAMES).map(lambda name: name.replace("*", "X")),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        max_size=5,
    )
)
def test_any_environment_is_a_configuration_or_problems(environment: dict[str, str]) -> None:
    reader, config = load_with(environment, None, 4)
    if not reader.problems:
        assert config.to_json()


@given(st.integers(1, 512), st.none() | st.floats(0, 512), st.none() | st.floats(0, 512))
def test_there_is_always_a_worker(cores: int, limit: float | None, request: float | None) -> None:
    assert automatic_workers(cores, limit, request) >= 1


@given(st.integers(0, 10**9))
def test_the_deadline_stays_below_the_grace_period(grace: int) -> None:
    deadline = termination_deadline(grace)
    assert deadline >= 1
    assert deadline < grace or grace <= 1
