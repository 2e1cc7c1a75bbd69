import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.local.access_lines import parse_line, parse_lines
from daemonset.local.metrics_lines import parse_samples
from ztunnel.telemetry.escape import quoted

LINE = (
    "2026-11-21T12:00:00.000000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:5"
    ' src.workload="web" dst.addr=[fd00::1]:15008 direction="inbound" bytes_sent=7'
)


def test_an_access_line_is_read() -> None:
    line = parse_line(LINE)
    assert line is not None
    assert line.message == "connection complete"
    assert line["src.workload"] == "web"
    assert line["dst.addr"] == "[fd00::1]:15008"
    assert line["bytes_sent"] == "7"
    assert line["error"] == ""
    assert line.inbound


def test_other_lines_and_half_lines_are_passed_over() -> None:
    text = f"some other line\n{LINE}\n2026\tinfo\tztunnel.xds\thello\n{LINE[:60]}"
    assert [line.text for line in parse_lines(text)] == [LINE]


@given(st.text())
def test_whatever_a_peer_puts_into_a_field_comes_back(value: str) -> None:
    line = parse_line(f"t\tinfo\taccess\tm\tsrc.workload={quoted(value)} error={quoted(value)} x=1")
    assert line is not None
    assert line["src.workload"] == line["error"] == value
    assert line["x"] == "1"


@given(st.text())
def test_any_text_is_a_line_or_none(text: str) -> None:
    for line in parse_lines(text):
        assert line.text in text


def test_samples_are_read() -> None:
    text = '# HELP a b\n# TYPE a counter\na{x="1",y="q\\"\\\\\\n"} 3\nb 1.5e3\n# EOF\n'
    first, second = parse_samples(text)
    assert (first.name, first.labels, first.value) == ("a", {"x": "1", "y": 'q"\\\n'}, 3.0)
    assert (second.name, second.labels, second.value) == ("b", {}, 1500.0)


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sample"):
        list(parse_samples("a b c\n"))
