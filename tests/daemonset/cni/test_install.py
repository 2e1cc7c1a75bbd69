import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from daemonset.agent import cni_install
from daemonset.agent.cni_chain import PLUGIN, ChainError, Entry, chained, unchained
from daemonset.agent.cni_install import CniFolders, CniInstaller

ENTRY = Entry("/run/ambient/cni.sock", "/var/lib/ambient/unenrolled", ("kube-system",))
KINDNET: dict[str, Any] = {
    "cniVersion": "0.3.1",
    "name": "kindnet",
    "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, {"type": "portmap"}],
}


class Node:
    def __init__(self, folder: Path) -> None:
        self.folders = CniFolders(folder / "ambient-cni", folder / "bin", folder / "net.d")
        self.folders.binaries.mkdir()
        self.folders.configurations.mkdir()
        self.folders.plugin.write_bytes(b"\x7fELF first")
        self.installer = CniInstaller(self.folders, ENTRY)

    def write(self, name: str, configuration: Any) -> Path:
        path = self.folders.configurations / name
        path.write_text(
            configuration if isinstance(configuration, str) else json.dumps(configuration)
        )
        return path

    def read(self, name: str) -> Any:
        return json.loads((self.folders.configurations / name).read_text())

    @property
    def program(self) -> Path:
        return self.folders.binaries / PLUGIN

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folders.configurations))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def types(configuration: Any) -> list[str]:
    return [each["type"] for each in configuration["plugins"]]


def test_installed_into_a_list(node: Node) -> None:
    path = node.write("10-kindnet.conflist", KINDNET)
    path.chmod(0o600)
    assert len(node.installer.install()) == 2
    installed = node.read("10-kindnet.conflist")
    assert types(installed) == ["ptp", "portmap", PLUGIN]
    assert installed["plugins"][:2] == KINDNET["plugins"]
    assert installed["plugins"][2] == ENTRY.to_json()
    assert path.stat().st_mode & 0o777 == 0o600
    assert node.program.read_bytes() == b"\x7fELF first"
    assert node.program.stat().st_mode & 0o777 == 0o755
    assert node.installer.install() == []
    assert node.names() == ["10-kindnet.conflist"]


def test_a_single_plugin_becomes_a_list(node: Node) -> None:
    node.write("05-bridge.conf", {"cniVersion": "0.4.0", "name": "b", "type": "bridge", "mtu": 9})
    node.installer.install()
    assert node.names() == ["05-bridge.conflist"]
    installed = node.read("05-bridge.conflist")
    assert (installed["cniVersion"], installed["name"]) == ("0.4.0", "b")
    assert installed["plugins"][0] == {"type": "bridge", "mtu": 9}


def test_the_first_usable_one_counts(node: Node) -> None:
    node.write("00-broken.conflist", "{")
    node.write("01-none.json", [])
    node.write("02-notes.txt", KINDNET)
    node.write("20-last.conflist", KINDNET)
    node.write("10-first.conflist", KINDNET)
    node.installer.install()
    assert PLUGIN in types(node.read("10-first.conflist"))
    assert PLUGIN not in types(node.read("20-last.conflist"))


def test_without_a_configuration_it_says_what_there_is(node: Node) -> None:
    node.write("00-broken.conflist", "{")
    with pytest.raises(ChainError, match=r"no network configuration in .*net\.d.*00-broken"):
        node.installer.install()


def test_another_plugin_program_replaces_the_former(node: Node) -> None:
    node.write("10-kindnet.conflist", KINDNET)
    node.installer.install()
    with node.program.open("rb") as running:
        node.folders.plugin.write_bytes(b"\x7fELF second")
        assert node.installer.install() == [f"installed {node.program}"]
        assert running.read() == b"\x7fELF first"  # a run that has begun is not disturbed
    assert node.program.read_bytes() == b"\x7fELF second"


def test_withdrawn_from_everywhere(node: Node) -> None:
    node.write("10-kindnet.conflist", KINDNET)
    node.installer.install()
    node.write("05-other.conflist", KINDNET)  # comes later, and sorts before
    node.installer.install()
    node.write("00-broken.conflist", "{")
    assert len(node.installer.withdraw()) == 3
    assert node.read("10-kindnet.conflist") == KINDNET
    assert node.read("05-other.conflist") == KINDNET
    assert not node.program.exists()
    assert node.installer.withdraw() == []


async def test_what_others_change_is_brought_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni_install, "LOOK", 0.01)

    async def until_whole(name: str) -> None:
        with trio.fail_after(30):
            while True:
                try:
                    if types(node.read(name))[-1] == PLUGIN and node.program.exists():
                        return
                except (OSError, ValueError):
                    pass
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        # Nothing there yet: it waits, says so, and is ready once the network plugin has come.
        nursery.start_soon(node.installer.run)
        with trio.fail_after(30):
            while "no network configuration" not in node.installer.complaint:
                await trio.sleep(0.005)
        node.write("10-kindnet.conflist", KINDNET)
        await until_whole("10-kindnet.conflist")
        node.write("10-kindnet.conflist", KINDNET)  # the other CNI was restarted
        await until_whole("10-kindnet.conflist")
        node.program.unlink()
        await until_whole("10-kindnet.conflist")
        node.write("01-new.conflist", KINDNET)
        await until_whole("01-new.conflist")
        assert node.installer.complaint == ""
        nursery.cancel_scope.cancel()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
PLUGINS = st.lists(
    st.dictionaries(st.sampled_from(["type", "x"]), st.sampled_from(["ptp", PLUGIN]))
)
CONFIGURATIONS = st.dictionaries(st.text(max_size=5), JSON, max_size=3).flatmap(
    lambda some: st.one_of(
        st.just({**some, "type": "ptp"}), PLUGINS.map(lambda found: {**some, "plugins": found})
    )
)


@given(CONFIGURATIONS | JSON)
def test_chaining_is_settled_after_once_and_can_be_undone(configuration: Any) -> None:
    try:
        name, text = chained("1.conf", json.dumps(configuration), ENTRY)
    except ChainError:
        return
    assert chained(name, text, ENTRY) == (name, text)
    assert types_of(text).count(PLUGIN) == 1
    assert types_of(text)[-1] == PLUGIN
    again = unchained(text)
    assert PLUGIN not in types_of(again)
    assert unchained(again) == again


def types_of(text: str) -> list[Any]:
    return [each.get("type") for each in json.loads(text)["plugins"]]


def test_what_was_withdrawn_is_not_installed_again(node: Node) -> None:
    node.write("10-kindnet.conflist", KINDNET)
    node.installer.install()
    assert node.installer.leftovers()
    node.installer.withdraw()
    assert node.installer.install() == []
    assert node.installer.leftovers() == []
