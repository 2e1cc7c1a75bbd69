"""What the CNI plugin asks: the bytes of one question, taken apart (sans-IO).

Fields that each end with a NUL (protocol, command, container id, network namespace, interface,
CNI_ARGS), then the network configuration as JSON; the plugin's `agent.c` writes it.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass

PROTOCOL = "ambient-cni/1"
LONGEST = (1 << 20) + 16384  # bytes; a configuration is a MiB at most, the environment is small


class CniRequestError(Exception):
    """The question makes no sense; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CniRequest:
    """One pod's network, about to be used (ADD) or looked at (CHECK).

    `netns` is the path of its namespace as the host sees it; `addresses` are canonical text, from
    the result of the plugins before; `pod_uid` is "" below runtimes that do not tell it.
    """

    command: str
    container_id: str
    netns: str
    interface: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pod_namespace}/{self.pod_name}"


def parse_request(data: bytes) -> CniRequest:
    """Raises CniRequestError."""
    fields = data.split(b"\0", 6)
    if len(fields) != 7:
        raise CniRequestError(f"seven fields are expected, {len(fields)} came")
    try:
        protocol, command, container_id, netns, interface, arguments = (
            field.decode() for field in fields[:6]
        )
    except UnicodeDecodeError as error:
        raise CniRequestError("the environment is not UTF-8") from error
    if protocol != PROTOCOL:
        raise CniRequestError(f"the plugin speaks {protocol[:40]!r}, this agent {PROTOCOL!r}")
    if command not in ("ADD", "CHECK"):
        raise CniRequestError(f"CNI_COMMAND {command[:40]!r} is not for the agent")
    if not netns.startswith("/"):
        raise CniRequestError("CNI_NETNS is no path")
    words = _arguments(arguments)
    namespace, name = words.get("K8S_POD_NAMESPACE", ""), words.get("K8S_POD_NAME", "")
    if not namespace or not name:
        raise CniRequestError("CNI_ARGS names no pod (K8S_POD_NAMESPACE and K8S_POD_NAME)")
    return CniRequest(
        command,
        container_id,
        netns,
        interface,
        namespace,
        name,
        words.get("K8S_POD_UID", ""),
        _addresses(fields[6]),
    )


def _arguments(text: str) -> Mapping[str, str]:
    pairs = (word.partition("=") for word in text.split(";"))
    return {key: value for key, separator, value in pairs if separator}


def _addresses(configuration: bytes) -> tuple[str, ...]:
    """`prevResult.ips[].address` (CIDR notation), each once, in their order."""
    try:
        ips = json.loads(configuration)["prevResult"].get("ips") or []
        found = [str(ipaddress.ip_interface(ip["address"]).ip) for ip in ips]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CniRequestError(f"prevResult has no addresses to be read: {error}") from error
    return tuple(dict.fromkeys(found))
