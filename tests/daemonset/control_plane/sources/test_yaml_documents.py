"""YAML with line numbers."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.sources.yaml_documents import (
    YamlError,
    read_documents,
    split_documents,
)


def plain(value: Located) -> object:
    inner = value.value
    if isinstance(inner, dict):
        return {key: plain(item) for key, item in inner.items()}
    if isinstance(inner, list):
        return [plain(item) for item in inner]
    return inner


def read(text: str) -> object:
    (document,) = read_documents(text)
    return plain(document)


def test_values_know_their_lines() -> None:
    (document,) = read_documents("a: 1\nb:\n  - x\n  - c:\n      d: e\n")
    assert document.line_of("a") == 1
    assert document.line_of("b[1].c.d") == 5
    assert document.line_of("b[1].c.missing.far[3]") == 4
    assert document.line_of("b[9]") == 2
    assert document.line_of("") == 1


def test_scalars_are_read_as_kubernetes_reads_them() -> None:
    text = """
    [1, -2, 0x1f, 0o17, 1.5, 1e3, true, No, on, null, ~, "1", 'yes', !!str 5, 2026-01-01,
     1:30, 010, 1_000, 99999999999999999999, .inf, a b]
    """
    assert read(text) == [
        *(1, -2, 31, 15, 1.5, 1000.0, True, False, True, None, None, "1", "yes", "5"),
        *("2026-01-01", "1:30", "010", "1_000", "99999999999999999999", ".inf", "a b"),
    ]


def test_empty_documents_are_left_out() -> None:
    assert [plain(item) for item in read_documents("---\n---\na: 1\n---\n# nothing\n---\n2\n")] == [
        {"a": 1},
        2,
    ]
    assert read_documents("") == []


def test_block_scalars_and_json() -> None:
    assert read("a: |\n  x\n  y\n") == {"a": "x\ny\n"}
    assert read('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert read("80: x") == {"80": "x"}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: &x 1", 2, "anchors"),
        ("a: 1\nb: *x", 2, "aliases"),
        ("a: &x {}", 1, "anchors"),
        ("<<: {a: 1}", 1, "merge keys"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' is there twice"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a: !Foo {}", 1, "tag"),
        ("a: !!int 3", 1, "tag"),
        ("? {a: b}\n: c", 1, "a mapping cannot be a key"),
        ("? [a]\n: c", 1, "a key must be a string"),
        ("true: c", 1, "a key must be a string"),
        ("a: [1,\nb: 2", 2, ""),
        ("a\tb:\n\t- x", 2, "tab"),
        ("a: 'x\n", 1, ""),
        ("a: \x00", 1, ""),
        ("a: 1\nb: \x07", 2, ""),
        ("[" * 100_000, 1, "nested more than 64 deep"),
        ("{a: " * 100_000, 1, "nested more than 64 deep"),
        ("- " * 100_000, 1, "nested more than 64 deep"),
    ],
)
def test_what_is_refused_and_where(text: str, line: int, problem: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_documents(text)
    assert caught.value.line == line
    assert problem in caught.value.problem


def refusal(text: str) -> YamlError | None:
    try:
        read_documents(text)
    except YamlError as error:
        return error
    return None


@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    error = refusal(text)
    assert error is None or (error.line >= 1 and error.problem)


fragments = st.sampled_from(
    [
        *"{}[],:-?|>&*!%@#\"'\\ \n\t",
        "\n  ",
        "- ",
        ": ",
        "---\n",
        "...\n",
        "a",
        "1",
        "null",
        "<<",
        "\x85",
    ]
)


@given(parts=st.lists(fragments, max_size=60))
def test_any_mix_of_yaml_is_read_or_refused(parts: list[str]) -> None:
    text = "".join(parts)
    error = refusal(text)
    assert error is None or 1 <= error.line <= len(text) + 1


# "0E0" is a string to PyYAML, which leaves it bare, and a number to Kubernetes.
texts = st.text(max_size=10).filter(lambda text: not re.fullmatch(r"[-+.0-9]+[eE][-+0-9]+", text))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@given(value=json_values)
def test_what_pyyaml_writes_is_read_back(value: object) -> None:
    documents = read_documents(yaml.safe_dump(value))
    assert [plain(item) for item in documents] == ([] if value is None else [value])


LINES = st.sampled_from(
    [
        *("---", "--- {a: 1}", "--- |", "--- # x", "---x", " ---", "...", "# ---", "%YAML 1.1", ""),
        *("a: 1", "b: |", "  text", "c: 'x", "d: y'", "- z", "e: >-", 'f: "', '"', "{", "}", "g:"),
        *("a: 1\r", "\x85", "h: \u2028", "\tx", "? k", ": v"),
    ]
)


def moved(value: Located, above: int) -> Located:
    inner = value.value
    if isinstance(inner, list):
        return Located([moved(item, above) for item in inner], value.line + above)
    if isinstance(inner, dict):
        items = {name: moved(item, above) for name, item in inner.items()}
        return Located(items, value.line + above)
    return Located(inner, value.line + above)


@given(lines=st.lists(LINES, max_size=10))
def test_documents_read_one_by_one_are_those_of_the_whole(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        apart = [
            moved(document, above)
            for above, part in split_documents(text)
            for document in read_documents(part)
        ]
    except YamlError:
        return
    assert apart == read_documents(text)
