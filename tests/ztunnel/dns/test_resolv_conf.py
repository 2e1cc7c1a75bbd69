from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns.resolv_conf import ResolvConf, parse_resolv_conf


def test_what_is_read() -> None:
    text = """
# comment
nameserver 10.96.0.10
nameserver FD00::A  trailing
domain ignored.test
search prod.svc.cluster.local svc.cluster.local.
options ndots:5 timeout:3 attempts:4 rotate
lookup file bind
"""
    assert parse_resolv_conf(text) == ResolvConf(
        nameservers=(("10.96.0.10", 53), ("fd00::a", 53)),
        search=(("prod", "svc", "cluster", "local"), ("svc", "cluster", "local")),
        timeout=3.0,
        attempts=4,
    )


def test_lines_that_cannot_be_used_are_named() -> None:
    found = parse_resolv_conf(
        "nameserver\nnameserver no\noptions timeout:x\n" + "nameserver ::1\n" * 4
    )
    assert found.nameservers == (("::1", 53),) * 3
    assert [problem.split(":")[0] for problem in found.problems] == [
        "line 1",
        "line 2",
        "line 3",
        "line 7",
    ]


def test_options_are_bounded_as_in_the_c_library() -> None:
    found = parse_resolv_conf("options timeout:900 attempts:0")
    assert (found.timeout, found.attempts) == (30.0, 1)


@given(st.text(st.sampled_from("nameservropti dmh:.0123456789\n#\x85é"), max_size=200) | st.text())
def test_any_text_can_be_read(text: str) -> None:
    found = parse_resolv_conf(text)
    assert len(found.nameservers) <= 3
    assert 1 <= found.timeout <= 30
