"""Which version of each file is in force."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.sources.file_reader import FileContent, read_file
from daemonset.control_plane.sources.folder_state import FolderState


def content(file: str, *nodes: str, label: str = "") -> FileContent:
    documents = [
        f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{l: '{label}'}}}}\n"
        for name in nodes
    ]
    return read_file(file, "---\n".join(documents).encode())


def broken(file: str) -> FileContent:
    return read_file(file, b"a: [")


def nodes(state: FolderState) -> dict[str, str]:
    return {name: node.meta.labels["l"] for name, node in sorted(state.objects.nodes.items())}


def messages(state: FolderState) -> list[str]:
    return [str(problem) for problem in state.problems]


def test_a_broken_file_keeps_its_last_good_objects_until_it_is_repaired() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x", label="1"), "b": content("b", "y", label="1")})
    state.apply({"a": broken("a"), "b": content("b", "y", label="2")})
    assert nodes(state) == {"x": "1", "y": "2"}
    assert messages(state) == ["a:1: did not find expected node content"]
    assert state.refused_without_good_version == ()
    state.apply({"a": content("a", "x", label="3")})
    assert nodes(state) == {"x": "3", "y": "2"}
    assert messages(state) == []


def test_a_broken_file_that_is_deleted_takes_its_objects_along() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x")})
    state.apply({"a": broken("a")})
    state.apply({"a": None})
    assert nodes(state) == {}
    assert messages(state) == []


def test_a_file_that_was_never_good_has_nothing_in_force() -> None:
    state = FolderState()
    state.apply({"a": broken("a")})
    assert nodes(state) == {}
    assert state.refused_without_good_version == ("a",)


def test_an_object_of_two_files_belongs_to_the_one_that_has_it() -> None:
    state = FolderState()
    state.apply({"b": content("b", "x", label="b")})
    state.apply({"a": content("a", "x", "z", label="a")})
    # All of the later file is refused, its other object too.
    assert nodes(state) == {"x": "b"}
    assert messages(state) == ["a:1: Node x: is already defined at b:1"]
    state.apply({"b": None})
    assert nodes(state) == {"x": "a", "z": "a"}
    assert messages(state) == []


def test_of_two_new_files_the_first_by_name_has_it() -> None:
    state = FolderState()
    state.apply({"b": content("b", "x", label="b"), "a": content("a", "x", label="a")})
    assert nodes(state) == {"x": "a"}
    assert messages(state) == ["b:1: Node x: is already defined at a:1"]


def test_an_object_moves_from_one_file_to_another_in_one_step() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x", "y", label="1"), "b": content("b", "z", label="1")})
    state.apply({"a": content("a", "y", label="2"), "b": content("b", "x", "z", label="2")})
    assert nodes(state) == {"x": "2", "y": "2", "z": "2"}
    assert messages(state) == []


def test_a_file_may_be_renamed() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x")})
    state.apply({"a": None, "b": content("b", "x")})
    assert list(nodes(state)) == ["x"]
    assert messages(state) == []


def test_what_a_refused_file_falls_back_to_is_not_given_away() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x", label="1"), "b": content("b", "y", label="1")})
    # a wants b's object and gives up its own, which c takes: but a is refused and keeps it.
    state.apply({"a": content("a", "y", label="2"), "c": content("c", "x", label="2")})
    assert nodes(state) == {"x": "1", "y": "1"}
    assert messages(state) == [
        "a:1: Node y: is already defined at b:1",
        "c:1: Node x: is already defined at a:1",
    ]


def test_copies_from_before_give_way_where_they_clash() -> None:
    state = FolderState()
    state.seed(content("a", "x", label="old"))
    state.seed(content("b", "x", label="old"))
    state.apply({"a": broken("a"), "b": broken("b")})
    assert list(nodes(state)) == ["x"]
    assert len(messages(state)) == 2


def test_places_name_file_and_line() -> None:
    state = FolderState()
    state.apply({"a": content("a", "x", "y")})
    key = state.objects.nodes["y"].meta.key
    assert state.place(key, "metadata.labels.l") == "a:7"
    assert state.place(key) == "a:5"


steps = st.lists(
    st.dictionaries(
        st.sampled_from("abc"),
        st.none() | st.just("broken") | st.sets(st.sampled_from("xyz"), max_size=3),
        max_size=3,
    ),
    max_size=6,
)


@given(steps=steps)
def test_every_file_is_in_force_or_has_a_problem(
    steps: list[dict[str, set[str] | str | None]],
) -> None:
    state = FolderState()
    newest: dict[str, set[str] | str] = {}
    for step in steps:
        changes: dict[str, FileContent | None] = {}
        for file, value in step.items():
            if value is None:
                changes[file] = None
                newest.pop(file, None)
            elif isinstance(value, str):
                changes[file] = broken(file)
                newest[file] = value
            else:
                changes[file] = content(file, *sorted(value), label=file)
                newest[file] = value
        state.apply(changes)
        refused = {problem.file for problem in state.problems}
        assert {file for file, value in newest.items() if value == "broken"} <= refused
        in_force = nodes(state)
        for file, value in newest.items():
            if file not in refused:
                assert {name for name, owner in in_force.items() if owner == file} == set(value)


class Settling(FolderState):
    """Goes through all files at each change."""

    def _replace(self, changes: Mapping[str, FileContent | None]) -> bool:
        return False


@given(steps=steps)
def test_the_short_way_comes_to_the_same(
    steps: list[dict[str, set[str] | str | None]],
) -> None:
    short, long = FolderState(), Settling()
    for step in steps:
        changes: dict[str, FileContent | None] = {}
        for file, value in step.items():
            if value is None:
                changes[file] = None
            elif isinstance(value, str):
                changes[file] = broken(file)
            else:
                changes[file] = content(file, *sorted(value), label=file)
        short.apply(changes)
        long.apply(changes)
        assert short.objects == long.objects
        assert short.problems == long.problems
        assert short.refused_without_good_version == long.refused_without_good_version
