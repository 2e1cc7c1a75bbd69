import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.baggage import (
    MAX_LENGTH,
    MAX_MEMBERS,
    WORKLOAD_TYPES,
    Baggage,
    format_baggage,
    parse_baggage,
)

FULL = Baggage("Kubernetes", "shop", "deployment", "cart", "cart", "v1", "r1", "z1")


def test_members_come_in_order() -> None:
    assert format_baggage(FULL) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,"
        "service.name=cart,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
    )
    assert parse_baggage(format_baggage(FULL)) == FULL


def test_absent_parts_are_left_out() -> None:
    assert format_baggage(Baggage()) == ""
    assert format_baggage(Baggage(namespace="a", workload_type="pod", workload_name="b")) == (
        "k8s.namespace.name=a,k8s.pod.name=b"
    )
    assert format_baggage(Baggage(workload_type="rocket", workload_name="b")) == ""


def test_values_are_percent_encoded() -> None:
    baggage = Baggage(cluster='a,b;c"d\\e f%g é')
    text = format_baggage(baggage)
    assert text == "k8s.cluster.name=a%2Cb%3Bc%22d%5Ce%20f%25g%20%C3%A9"
    assert parse_baggage(text) == baggage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Baggage()),
        (" k8s.cluster.name = a ; prop=1 ; x , other=2", Baggage(cluster="a")),
        ("k8s.cluster.name=a,k8s.cluster.name=b", Baggage(cluster="a")),
        ("k8s.cluster.name,=,,=x,k8s.cluster.name", Baggage()),
        ("service.name=a=b", Baggage(service="a=b")),
        ("service.name=%", Baggage(service="%")),
        ("service.name=%0A,service.name=ok", Baggage(service="ok")),
        ("service.name=%FF", Baggage(service="\N{REPLACEMENT CHARACTER}")),
        ("k8s.job.name=j", Baggage(workload_type="job", workload_name="j")),
        ("k8s.cronjob.name=c", Baggage(workload_type="cronjob", workload_name="c")),
    ],
)
def test_reading_is_tolerant(text: str, expected: Baggage) -> None:
    assert parse_baggage(text) == expected


def test_reading_has_limits() -> None:
    member = "service.name=late"
    assert parse_baggage("x=1," * (MAX_MEMBERS - 1) + member).service == "late"
    assert parse_baggage("x=1," * MAX_MEMBERS + member) == Baggage()
    assert parse_baggage("service.name=" + "a" * MAX_LENGTH) == Baggage()


printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@given(
    st.builds(
        Baggage,
        cluster=printable,
        namespace=printable,
        workload_type=st.sampled_from(WORKLOAD_TYPES),
        workload_name=printable,
        service=printable,
        revision=printable,
        region=printable,
        zone=printable,
    )
)
def test_what_is_written_is_read(baggage: Baggage) -> None:
    text = format_baggage(baggage)
    assert text.isascii()
    assert parse_baggage(text) == baggage


@given(st.text())
def test_reading_never_raises(text: str) -> None:
    found = parse_baggage(text)
    assert all(value.isprintable() for value in (found.cluster, found.service, found.zone))
