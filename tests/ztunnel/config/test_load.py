"""The environment as a whole: defaults, errors, and what follows from what."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import pytest

from ztunnel import config
from ztunnel.config import ConfigError, LogFormat, OriginalSource, ProxyMode, WorkloadName
from ztunnel.config.load import load_with
from ztunnel.config.model import UnknownPolicy


def read(environment: Mapping[str, str], cores: int = 8, mesh: str | None = None) -> config.Config:
    reader, loaded = load_with(environment, mesh, cores)
    assert reader.problems == []
    return loaded


def problems(environment: Mapping[str, str], mesh: str | None = None) -> list[str]:
    return load_with(environment, mesh, 8)[0].problems


def test_defaults_are_istios() -> None:
    loaded = read({})
    assert loaded.mode is ProxyMode.SHARED
    assert loaded.workers == 2
    assert loaded.xds.address == loaded.ca.address == "https://localhost:15012"
    assert loaded.sockets.packet_mark == 1337
    assert loaded.sockets.original_source is OriginalSource.AUTO
    assert loaded.sockets.keepalive.user_timeout is None
    assert loaded.tunnel.unused_release_timeout == 300.0
    assert loaded.tunnel.window_budget == 256 << 20
    assert loaded.termination_deadline == 5.0
    assert loaded.telemetry.log_format is LogFormat.PLAIN
    assert (loaded.dns.host, loaded.dns.port) == ("localhost", 15053)
    assert loaded.ca.certificate_lifetime == 86400.0
    assert not loaded.node.self_proxied


def test_kernel_paths_can_be_switched_off() -> None:
    kernel = read({}).kernel
    assert (kernel.sockmap, kernel.splice, kernel.ktls) == (True, True, False)
    assert (kernel.join_pods, kernel.direct) == (False, True)
    assert read({"ZTUNNEL_KTLS": "true"}).kernel.ktls
    assert read({"ZTUNNEL_JOIN_PODS": "true"}).kernel.join_pods
    assert not read({"ZTUNNEL_DIRECT": "false"}).kernel.direct
    kernel = read({"ZTUNNEL_SOCKMAP": "false", "ZTUNNEL_SPLICE": "false"}).kernel
    assert (kernel.sockmap, kernel.splice) == (False, False)


def test_kubernetes_chooses_istiod_and_an_address_needs_no_scheme() -> None:
    assert read({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).xds.address == (
        "https://istiod.istio-system.svc:15012"
    )
    assert read({"XDS_ADDRESS": "istiod.x.svc:15012"}).xds.address == "https://istiod.x.svc:15012"
    assert read({"XDS_ADDRESS": "http://[::1]:15010"}).xds.address == "http://[::1]:15010"
    assert read({"XDS_ADDRESS": ""}).xds.address is None


def test_all_problems_come_together_and_name_variable_value_and_what_is_allowed() -> None:
    found = problems(
        {
            "IPV6_ENABLED": "maybe",
            "SECRET_TTL": "1 day",
            "PROXY_MODE": "solo",
            "HTTP2_FRAME_SIZE": "1",
        }
    )
    assert len(found) == 4
    assert 'IPV6_ENABLED="maybe": allowed are true and false' in found
    assert any(p.startswith('SECRET_TTL="1 day": allowed is a duration') for p in found)
    assert 'PROXY_MODE="solo": allowed are shared or dedicated' in found
    assert 'HTTP2_FRAME_SIZE="1": allowed is a whole number from 16384 to 16777215' in found


def test_load_raises_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({"KEEPALIVE_TIME": "-1s", "TLS12_ENABLED": "true"})
    assert len(caught.value.problems) == 2
    assert "only TLS 1.3" in str(caught.value)


def test_a_typo_in_our_own_prefix_is_an_error_with_a_hint() -> None:
    assert problems({"ZTUNNEL_TLS_RECORD": "own"}) == [
        "ZTUNNEL_TLS_RECORD is not a variable that ztunnel knows; did you mean ZTUNNEL_TLS_RECORDS?"
    ]


def test_the_links_that_kubernetes_injects_for_services_are_not_typos() -> None:
    links = {
        "ZTUNNEL_SERVICE_HOST": "10.0.0.9",
        "ZTUNNEL_SERVICE_PORT_HTTP_MONITORING": "15020",
        "ZTUNNEL_PORT": "tcp://10.0.0.9:15020",
        "ZTUNNEL_PORT_15020_TCP_ADDR": "10.0.0.9",
        "ZTUNNEL_METRICS_SERVICE_HOST": "10.0.0.9",
        "ZTUNNEL_METRICS_PORT_15020_TCP": "tcp://10.0.0.9:15020",
    }
    assert problems(links) == []


@pytest.mark.parametrize("name", ["TLS12_ENABLED", "COMPLIANCE_POLICY", "FAKE_CA"])
def test_what_cannot_apply_is_refused_unless_it_asks_for_the_default(name: str) -> None:
    default = "" if name == "COMPLIANCE_POLICY" else "false"
    assert problems({name: default}) == []
    assert problems({name: "pqc"})[0].startswith(f'{name}="pqc": allowed is only "{default}"')


@pytest.mark.parametrize("mark", [0x111, 0xABC111])
def test_a_mark_that_capture_takes_for_an_answer_is_refused(mark: int) -> None:
    (problem,) = problems({"PACKET_MARK": str(mark)})
    assert problem.startswith(f'PACKET_MARK="{mark}": {mark:#x} ends in 0x111')


def test_dedicated_mode_needs_its_workload_and_sets_no_mark() -> None:
    assert problems({"PROXY_MODE": "dedicated"}) == [
        "PROXY_MODE=dedicated needs PROXY_WORKLOAD_INFO"
    ]
    assert len(problems({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b"})) == 1
    loaded = read({"PROXY_MODE": "Dedicated", "PROXY_WORKLOAD_INFO": "shop/web-1/web"})
    assert loaded.workload == WorkloadName("shop", "web-1", "web")
    assert loaded.sockets.packet_mark is None


@pytest.mark.parametrize(
    ("environment", "mesh", "workers"),
    [
        ({}, None, 2),
        ({"ZTUNNEL_CPU_LIMIT": "40"}, None, 10),
        ({"ZTUNNEL_CPU_LIMIT": "40", "ZTUNNEL_RESOURCE_CPU_REQUEST": "10500m"}, None, 11),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "500m"}, None, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "3"}, "defaultConfig: {concurrency: 5}", 5),
        ({}, "defaultConfig: {concurrency: 0}", 8),
        ({"PROXY_CONFIG": '{"concurrency": 6}'}, "defaultConfig: {concurrency: 5}", 6),
        ({"ZTUNNEL_WORKER_THREADS": "0"}, "defaultConfig: {concurrency: 5}", 8),
        ({"ZTUNNEL_WORKER_THREADS": "30%"}, None, 3),
        ({"ZTUNNEL_WORKER_THREADS": "7"}, None, 7),
    ],
)
def test_workers(environment: Mapping[str, str], mesh: str | None, workers: int) -> None:
    assert read(environment, mesh=mesh).workers == workers


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 1.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "2s"}, 2.0),
    ],
)
def test_termination_deadline(environment: Mapping[str, str], seconds: float) -> None:
    assert read(environment).termination_deadline == seconds


def test_proxy_config_goes_over_the_mesh_config_and_needs_no_metadata() -> None:
    mesh = (
        "defaultConfig: {discoveryAddress: 'a:1', statsPort: 1, proxyMetadata: {ISTIO_META_X: on}}"
    )
    inline = "{proxyAdminPort: 2, discoveryAddress: 'b:2', proxyMetadata: {ISTIO_META_Y: 'y'}}"
    loaded = read({"PROXY_CONFIG": inline, "ISTIO_META_Y": "mine"}, mesh=mesh)
    assert loaded.xds.address == "https://b:2"
    assert (loaded.telemetry.admin_port, loaded.telemetry.stats_port) == (2, 1)
    assert loaded.xds.metadata == {"X": "true", "Y": "mine"}
    assert read({"PROXY_CONFIG": "{statsPort: 9}"}).telemetry.stats_port == 9


@pytest.mark.parametrize(
    ("inline", "words"),
    [
        ("{", "PROXY_CONFIG: not YAML"),
        ("[1]", "PROXY_CONFIG: a mapping is needed, not list"),
        ("proxyMetadata: 3", "PROXY_CONFIG: proxyMetadata: a mapping is needed, not int"),
        ("statsPort: 99999", "proxy configuration: statsPort: 99999: allowed is a whole number"),
        ("discoveryAddress: 7", "proxy configuration: discoveryAddress: text is needed, not 7"),
        ("discoveryAddress: nowhere", "proxy configuration: discoveryAddress: allowed is https"),
    ],
)
def test_proxy_config_errors(inline: str, words: str) -> None:
    assert any(problem.startswith(words) for problem in problems({"PROXY_CONFIG": inline}))


def test_on_demand_excludes_the_dns_proxy() -> None:
    assert "ISTIO_META_DNS_CAPTURE=false" in problems({"XDS_ON_DEMAND": "true"})[0]
    assert read({"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}).xds.on_demand


def test_headers_and_metadata() -> None:
    loaded = read(
        {
            "XDS_HEADER_X-Tenant": "a",
            "CA_HEADER_AUTH_MODE": "b",
            "ISTIO_META_CLUSTER_ID": "east",
            "ISTIO_METAJSON_LABELS": '{"a": [1]}',
        }
    )
    assert loaded.xds.headers == {"x-tenant": "a"}
    assert loaded.ca.headers == {"auth_mode": "b"}
    assert loaded.node.cluster_id == "east"
    assert loaded.xds.metadata == {"CLUSTER_ID": "east", "LABELS": {"a": [1]}}
    assert problems({"ISTIO_METAJSON_L": "{"})[0].startswith("ISTIO_METAJSON_L: not JSON")
    assert "cannot be sent" in problems({"XDS_HEADER_A": "b\r\nc: d"})[0]


def test_token_and_roots(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    loaded = read({"AUTH_TOKEN": str(token), "XDS_ROOT_CA": "SYSTEM", "CA_ROOT_CA": str(token)})
    assert loaded.token.read() == "one"
    token.write_text("two\n")
    assert loaded.token.read() == "two"
    assert loaded.xds.roots.read() is None
    assert loaded.ca.roots.read() == b"two\n"
    assert read({"XDS_ROOT_CA": "-----BEGIN X"}).xds.roots.path is None
    assert read({"AUTH_TOKEN": "secret"}).token.read() == "secret"
    token.write_text("a b")
    with pytest.raises(ValueError, match="no token that a header can carry"):
        loaded.token.read()


def test_the_dump_carries_no_secret() -> None:
    loaded = read({"AUTH_TOKEN": "hunter2", "XDS_HEADER_KEY": "hunter2"})
    dump = loaded.to_json()
    assert "hunter2" not in str(dump)
    assert "hunter2" not in repr(loaded.token)
    assert dump["token"] is True
    assert dump["tunnel"]["streamWindow"] == 4194304  # type: ignore[index]


def test_the_table_names_every_variable_once_with_its_default() -> None:
    table = config.variables()
    names = [variable.name for variable in table]
    assert len(names) == len(set(names)) > 60
    text = config.help_text()
    assert "KEEPALIVE_TIME  [180s]" in text
    assert 'COMPLIANCE_POLICY  [""]' in text
    assert all(variable.meaning for variable in table)


def test_log_filter_is_checked_at_start() -> None:
    assert problems({"RUST_LOG": "info,access=loud"})[0].startswith('RUST_LOG="info,access=loud"')
    assert read({"RUST_LOG": "info,ztunnel::proxy=debug,access=off"}).telemetry.log_filter


def test_without_shared_ports_there_is_one_worker() -> None:
    assert read({"INPOD_PORT_REUSE": "false"}).workers == 1
    assert problems({"INPOD_PORT_REUSE": "false", "ZTUNNEL_WORKER_THREADS": "2"}) == [
        "INPOD_PORT_REUSE=false lets one worker listen: set ZTUNNEL_WORKER_THREADS=1"
    ]
    assert read({"INPOD_PORT_REUSE": "false", "ZTUNNEL_WORKER_THREADS": "1"}).workers == 1


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("ENABLE_PROXY", "false", "proxy_enabled", False),
        ("ENABLE_RESPONSE_BAGGAGE", "false", "tunnel.response_baggage", False),
        ("LOCALHOST_APP_TUNNEL", "false", "tunnel.localhost_app_tunnel", False),
        ("HTTP2_STREAM_WINDOW_SIZE", "65535", "tunnel.stream_window", 65535),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "65535", "tunnel.connection_window", 65535),
        ("HTTP2_FRAME_SIZE", "16384", "tunnel.frame_size", 16384),
        ("ZTUNNEL_WINDOW_BUDGET", "0", "tunnel.window_budget", 0),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1m", "tunnel.unused_release_timeout", 60.0),
        ("USER_TIMEOUT_ENABLED", "true", "sockets.keepalive.user_timeout", 180.0 + 180.0 * 9),
        ("PREFERED_SERVICE_NAMESPACE", "shop", "dns.preferred_service_namespace", "shop"),
        ("CLUSTER_DOMAIN", "mesh.test", "node.cluster_domain", "mesh.test"),
        ("INSTANCE_IP", "10.0.0.7", "node.instance_ip", "10.0.0.7"),
        ("ISTIO_META_ISTIO_VERSION", "1.31", "node.istio_version", "1.31"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true", "telemetry.policy_info_logging", True),
        ("ZTUNNEL_LOOKUP_TIMEOUT", "1s", "xds.lookup_timeout", 1.0),
        ("ZTUNNEL_UNKNOWN_POLICY", "allow", "unknown_policy", UnknownPolicy.ALLOW),
    ],
)
def test_a_variable_sets_its_field(variable: str, value: str, field: str, expected: object) -> None:
    at = attrgetter(field)
    assert at(read({})) != expected
    assert at(read({variable: value})) == expected
