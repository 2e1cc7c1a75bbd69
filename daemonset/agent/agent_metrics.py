"""The node agent's metrics, made from its status when somebody asks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from daemonset.agent.status import AgentStatus


class AgentMetrics:
    """Prometheus text.

    Args:
        cni_answers: how often the CNI plugin was told what.
        cni_installed: whether the plugin is where it should be.
    """

    def __init__(
        self,
        status: Callable[[], AgentStatus],
        cni_answers: Callable[[], Mapping[str, int]],
        cni_installed: Callable[[], bool],
    ) -> None:
        self._status = status
        self._cni_answers = cni_answers
        self._cni_installed = cni_installed
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client.registry.Collector."""
        status = self._status()
        yield _gauge(
            "ztunnel_connected", "Whether a ztunnel has its snapshot.", status.synchronised
        )
        yield _gauge(
            "istio_cni_install_ready", "Whether the CNI plugin is installed.", self._cni_installed()
        )
        pods = GaugeMetricFamily("nodeagent_pods", "Pods of the node.", labels=["state"])
        for state, number in Counter(pod.state.value for pod in status.pods).items():
            pods.add_metric([state], number)
        yield pods
        bypass = GaugeMetricFamily(
            "mesh_bypass_possible",
            "Pods that should be in the mesh and cannot be captured: their traffic is stopped, or"
            " passes outside the mesh.",
            labels=["namespace", "pod", "reason", "traffic"],
        )
        for pod in status.pods:
            if pod.uncaptured:
                traffic = "passes" if pod.may_bypass else "stopped"
                bypass.add_metric([pod.namespace, pod.name, pod.reason, traffic], 1)
        yield bypass
        repairs = CounterMetricFamily(
            "nodeagent_capture_repairs", "Capture rules brought back, by pod.",
            labels=["namespace", "pod"],
        )  # fmt: skip
        for pod in status.pods:
            if pod.repairs:
                repairs.add_metric([pod.namespace, pod.name], pod.repairs)
        yield repairs
        answers = CounterMetricFamily(
            "istio_cni_plugin_requests", "What the CNI plugin was told.", labels=["answer"]
        )
        for answer, number in self._cni_answers().items():
            answers.add_metric([answer], number)
        yield answers


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))
