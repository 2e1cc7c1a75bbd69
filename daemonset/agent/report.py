"""What an agent says of its node, for `ambient check`, `status` and `uninstall`.

It stands in an annotation of the agent's own pod: that takes no right that the agent has not got
anyhow, and whoever may read pods can read it, from wherever the API can be reached.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from daemonset.agent.status import AgentStatus, PodState

REPORT = "ambientd.io/node-report"
WITHDRAW = "ambientd.io/withdraw"
"""A label of the agents' namespace: pods leave the mesh, and agents leave their nodes alone. Its
value is any word; reports quote it, so that an old report is not taken for the answer."""
MOST_PODS = 40
"""So many pods in trouble are told of by name."""
_NAMED = (PodState.PENDING, PodState.STOPPED, PodState.FAILED, PodState.LEAVING)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that the node's kernel was asked for by trying it. ``detail``: what came of it, in
    words, where it does not work; ``needed``: without it pods cannot be captured."""

    name: str
    works: bool
    needed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """The node's CNI configuration: the file that counts, and the plugins in it, in order.

    ``complaint``: why pods that start may not be captured at once, "" when all is well.
    """

    file: str = ""
    plugins: tuple[str, ...] = ()
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A pod that is not as it is wanted, or on its way out of the mesh."""

    pod: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node.

    Attributes:
        ztunnels: how many are connected; ``synchronised``: whether the latest knows its pods.
        host_rules: what is wrong with the node's own rules.
        pods: how many are in which state (``PodState``).
        withdrawn: the value of the label that had everything of the mesh taken off the node, which
            has been done but for ``left``; "" while the agent is at work.
    """

    version: str
    features: tuple[Feature, ...] = ()
    chain: Chain | None = None
    ztunnels: int = 0
    synchronised: bool = False
    host_rules: str = ""
    pods: Mapping[str, int] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()
    withdrawn: str = ""
    left: tuple[str, ...] = ()


def make_report(
    version: str,
    status: AgentStatus,
    features: tuple[Feature, ...],
    chain: Chain | None,
    withdrawn: str = "",
    left: tuple[str, ...] = (),
) -> NodeReport:
    """Pure."""
    pods: dict[str, int] = {}
    for pod in status.pods:
        pods[pod.state.value] = pods.get(pod.state.value, 0) + 1
    troubles = tuple(
        Trouble(f"{pod.namespace}/{pod.name}", pod.state.value, pod.reason[:300])
        for pod in status.pods
        if pod.state in _NAMED
    )
    return NodeReport(
        version,
        features,
        chain,
        status.ztunnels,
        status.synchronised,
        status.host_rules,
        pods,
        troubles[:MOST_PODS],
        withdrawn,
        left,
    )


def report_text(report: NodeReport) -> str:
    """As it stands in the annotation."""
    return json.dumps(asdict(report), separators=(",", ":"), ensure_ascii=False)


def read_report(text: str) -> NodeReport:
    """What `report_text` wrote; fields of later versions are passed over.

    Raises:
        ValueError: it is no report.
    """
    try:
        data = json.loads(text)
        chain = data.get("chain")
        return NodeReport(
            version=_text(data["version"]),
            features=tuple(
                Feature(_text(one["name"]), bool(one["works"]), bool(one["needed"]),
                        _text(one.get("detail", "")))
                for one in data.get("features", ())
            ),
            chain=None if chain is None else Chain(
                _text(chain.get("file", "")),
                tuple(map(_text, chain.get("plugins", ()))),
                _text(chain.get("complaint", "")),
            ),
            ztunnels=int(data.get("ztunnels", 0)),
            synchronised=bool(data.get("synchronised", False)),
            host_rules=_text(data.get("host_rules", "")),
            pods={_text(state): int(number) for state, number in data.get("pods", {}).items()},
            troubles=tuple(
                Trouble(_text(one["pod"]), _text(one["state"]), _text(one["reason"]))
                for one in data.get("troubles", ())
            ),
            withdrawn=_text(data.get("withdrawn", "")),
            left=tuple(map(_text, data.get("left", ()))),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no report of a node agent: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}")
    return value
