import select
import socket
import threading
from collections.abc import Iterator

import pytest

from ztunnel.linux import netns
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Chain, Element, Rule, Set, Table, address_bytes, differences
from ztunnel.linux.nftables import Nftables, subscribe

pytestmark = pytest.mark.root

TCP = socket.IPPROTO_TCP
PORT_80 = (80).to_bytes(2, "big") + b"\0\0"

EVERYTHING = Table(
    "everything",
    (
        Chain(
            "prerouting",
            (
                Rule(
                    (*nft.protocol(TCP), *nft.source("169.254.7.127"), nft.accept()),
                    "probes of this node",
                ),
                Rule((*nft.source("fd16::1", negated=True), nft.drop())),
                Rule(
                    (
                        *nft.protocol(TCP),
                        *nft.destination_port(15008, negated=True),
                        *nft.mark(0x539, 0xFFF, negated=True),
                        nft.counter(),
                        *nft.redirect(15006),
                    )
                ),
                Rule((*nft.input_interface("eth0"), *nft.connection_direction(reply=True))),
            ),
            "prerouting",
            "nat",
            -100,
        ),
        Chain(
            "output",
            (
                Rule((*nft.output_interface("lo", negated=True), nft.jump("more"))),
                Rule((*nft.connection_mark(0x111, 0xFFF), *nft.mark_from_connection())),
                Rule((*nft.mark(7, 0xFFFFFFFF), *nft.set_connection_mark(0x111, 0xFFF))),
                Rule((*nft.set_mark(0xF1234567),)),
            ),
            "output",
            "route",
            -150,
            drop=True,
        ),
        Chain(
            "raw",
            (Rule((*nft.protocol(17), *nft.source_port(53), *nft.set_connection_zone(1))),),
            "output",
            "filter",
            -300,
        ),
        Chain(
            "postrouting",
            (
                Rule(
                    (
                        *nft.sent_by_a_process(),
                        *nft.in_set("probes", socket.AF_INET),
                        *nft.source_nat("169.254.7.127"),
                    )
                ),
                Rule((*nft.destination("fd00::2"), *nft.source_nat("fd00::1"))),
                Rule((nft.masquerade(),)),
            ),
            "postrouting",
            "nat",
            100,
        ),
        Chain(
            "dnat",
            (
                Rule(
                    (
                        *nft.protocol(TCP),
                        *nft.random_choice(3, 1),
                        *nft.destination("10.0.0.1"),
                        *nft.destination_nat("10.1.0.1", 8080),
                    )
                ),
                Rule((*nft.destination("10.0.0.1"), *nft.destination_nat("10.1.0.1"))),
            ),
            "output",
            "nat",
            -99,
        ),
        Chain("more", (Rule((nft.goto("most"),)),)),
        Chain("most", (Rule((nft.leave(),)),)),
    ),
    (
        Set("probes", ("ipv4_addr",), elements=(Element(b"\x0a\0\0\1", comment="uid-1"),)),
        Set(
            "vips",
            ("ipv4_addr", "inet_service"),
            ("ipv4_addr", "inet_service"),
            (Element(b"\x0a\0\0\1" + PORT_80, b"\x0a\1\0\1" + PORT_80),),
        ),
        Set("vips6", ("ipv6_addr", "inet_service"), ("ipv6_addr", "inet_service")),
    ),
)


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        with made.enter():
            netns.bring_up("lo")
            netns.set_sysctl("net.ipv4.tcp_congestion_control", "reno")
        yield made


@pytest.fixture
def nftables(namespace: NetworkNamespace) -> Iterator[Nftables]:
    with Nftables(namespace) as opened:
        yield opened


def test_every_expression_reads_back_as_it_was_written(nftables: Nftables) -> None:
    nftables.replace(EVERYTHING)
    found = nftables.read("everything")
    assert differences(EVERYTHING, found) == []
    assert found is not None
    assert found.chains[0].rules[0].comment == "probes of this node"
    assert found.sets[0].elements == EVERYTHING.sets[0].elements
    assert found.sets[1].elements == EVERYTHING.sets[1].elements
    assert found == EVERYTHING


def test_replacing_is_idempotent_and_deleting_too(nftables: Nftables) -> None:
    nftables.replace(EVERYTHING)
    nftables.replace(EVERYTHING)
    assert nftables.table_names() == ["everything"]
    nftables.delete("everything", "never was")
    nftables.delete("everything")
    assert nftables.table_names() == []
    assert nftables.read("everything") is None
    assert differences(EVERYTHING, None) == ["table everything is gone"]


def test_a_transaction_that_fails_changes_nothing_and_names_the_culprit(
    nftables: Nftables,
) -> None:
    good = Table("good", (Chain("c", (Rule((nft.accept(),)),)),))
    nftables.replace(good)
    changed = Table("good", (Chain("c", (Rule((nft.drop(),)),)),))
    bad = Table("bad", (Chain("c", (Rule((nft.accept(),)), Rule((nft.jump("nowhere"),)))),))
    with pytest.raises(NetlinkError) as refused:
        nftables.replace(changed, bad)
    assert refused.value.__notes__ == ["nftables: a rule of table bad was refused"]
    assert nftables.table_names() == ["good"]
    assert differences(good, nftables.read("good")) == []
    # The conversation goes on as if nothing had happened.
    nftables.delete("good")
    assert nftables.table_names() == []


def test_differences_are_said_in_words(nftables: Nftables) -> None:
    meant = Table(
        "t",
        (
            Chain("a", (Rule((nft.accept(),), "first"), Rule((nft.drop(),), "second"))),
            Chain("b", (), "output", "filter", 0),
        ),
        (Set("s", ("ipv4_addr",)),),
    )
    found = Table(
        "t",
        (
            Chain("a", (Rule((nft.drop(),), "second"), Rule((nft.accept(),), "foreign"))),
            Chain("b", (), "output", "filter", 5),
            Chain("c", ()),
        ),
        (Set("s", ("ipv6_addr",)), Set("x", ("ipv4_addr",))),
    )
    nftables.replace(found)
    assert differences(meant, nftables.read("t")) == [
        "rule of chain a is gone or changed: first",
        "rule of chain a is not ours: foreign",
        "chain b hangs somewhere else",
        "chain c is not ours",
        "set s is gone or has another type",
        "set x is not ours",
    ]
    swapped = Table("t", (Chain("a", tuple(reversed(meant.chains[0].rules))), meant.chains[1]))
    assert differences(meant, swapped)[0] == "rules of chain a are in another order"


def test_elements_come_and_go(nftables: Nftables) -> None:
    nftables.replace(Table("t", (), (Set("s", ("ipv6_addr",)),)))
    one = Element(address_bytes("2001:db8::1"), comment="uid-1")
    two = Element(address_bytes("2001:db8::2"), comment="uid-2")
    nftables.add_elements("t", "s", [one, two])
    assert set(nftables.elements("t", "s")) == {one, two}
    other = Element(one.key, comment="uid-3")
    nftables.replace_elements("t", "s", [one], [other])
    assert set(nftables.elements("t", "s")) == {other, two}
    nftables.replace_elements("t", "s", [two], [])
    assert nftables.elements("t", "s") == (other,)
    with pytest.raises(NetlinkError):
        nftables.replace_elements("t", "s", [two], [])
    # Many, in one packet.
    many = [
        Element(address_bytes(f"2001:db8:1::{n:x}"), comment="a comment " * 10)
        for n in range(1, 1001)
    ]
    nftables.add_elements("t", "s", many)
    assert len(nftables.elements("t", "s")) == 1001


def test_a_change_is_noticed(namespace: NetworkNamespace, nftables: Nftables) -> None:
    with subscribe(namespace) as watcher:
        before = nftables.generation()
        assert watcher.drain_notifications() == 0
        nftables.replace(EVERYTHING)
        assert select.select([watcher.sock], [], [], 5)[0]
        assert watcher.drain_notifications() > 0
        assert nftables.generation() != before
        before = nftables.generation()
        nftables.read("everything")
        assert nftables.generation() == before
        assert watcher.drain_notifications() == 0


def test_what_is_read_was_so_at_one_moment(namespace: NetworkNamespace) -> None:
    """While the table comes and goes, it is either there as a whole or not at all."""
    over = threading.Event()

    def change() -> None:
        with Nftables(namespace) as other:
            while not over.is_set():
                other.replace(EVERYTHING)
                other.delete("everything")

    changing = threading.Thread(target=change)
    with Nftables(namespace) as nftables:
        changing.start()
        try:
            seen = [differences(EVERYTHING, nftables.read("everything")) for _ in range(100)]
        finally:
            over.set()
            changing.join()
    assert {tuple(each) for each in seen} <= {(), ("table everything is gone",)}


def test_a_change_keeps_what_both_have(nftables: Nftables) -> None:
    seen = Rule((nft.counter(),), "seen")
    jump = Rule((*nft.protocol(TCP), nft.jump("more")))
    names = Set("names", ("ipv4_addr",))
    old = Table(
        "changing",
        (
            Chain("in", (jump,), "prerouting", "filter", 5),
            Chain("out", (seen,), "output", "filter", 5),
            Chain("moved", (seen,), "output", "filter", 6),
            Chain("gone", (Rule((*nft.in_set("other", socket.AF_INET), nft.counter())),)),
            Chain("more", (seen,)),
        ),
        (names, Set("other", ("ipv4_addr",))),
    )
    nftables.replace(old)
    nftables.add_elements("changing", "names", [Element(bytes(4))])
    new = Table(
        "changing",
        (
            Chain("in", (jump,), "prerouting", "filter", 5),
            Chain("out", (), "output", "filter", 5),
            Chain("moved", (seen,), "output", "filter", 7),
            Chain("more", (Rule((*nft.in_set("names", socket.AF_INET), nft.counter())), seen)),
        ),
        (names, Set("another", ("ipv4_addr",))),
    )
    nftables.change(old, new)
    assert differences(new, nftables.read("changing")) == []
    assert nftables.elements("changing", "names") == (Element(bytes(4)),)
    # What was found may be there no more.
    nftables.delete("changing")
    nftables.change(old, new)
    assert differences(new, nftables.read("changing")) == []
