"""The files of /etc that a kubelet writes for each pod: who answers for names."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from daemonset.local.run_directory import RunDirectory
from daemonset.local.topology import PodPlan

NDOTS = 5
"""As in every cluster: a name with fewer dots is tried in the search domains first."""

_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
# A name service cache, or systemd's resolver, would answer for the machine instead of the cluster,
# over a socket file that no network namespace hides.
_CACHE_SOCKETS = ("/run/nscd/socket", "/var/run/nscd/socket")


class PodFiles:
    """Writes the files under the run directory; pods get them bound over their own."""

    def __init__(self, run: RunDirectory, dns_address: str, cluster_domain: str) -> None:
        self._run = run
        self._dns_address = dns_address
        self._cluster_domain = cluster_domain
        self._common = dict(
            self._present({"/etc/nsswitch.conf": self._write("nsswitch.conf", _NSSWITCH)})
        )
        nothing = self._write("nothing", "")
        self._common.update(self._present(dict.fromkeys(_CACHE_SOCKETS, nothing)))

    @staticmethod
    def missing() -> list[str]:
        """Files that pods cannot have, because the machine has none in whose place to put them."""
        return [path for path in ("/etc/resolv.conf", "/etc/hosts") if not Path(path).exists()]

    def of_nodes(self) -> Mapping[str, Path]:
        """For what runs on nodes: the cluster's DNS, no search domains."""
        text = f"nameserver {self._dns_address}\n"
        return self._with_common({"/etc/resolv.conf": self._write("resolv.conf", text)})

    def of_pod(self, pod: PodPlan) -> Mapping[str, Path]:
        """For one pod: ``dnsPolicy: ClusterFirst``, and its own name in /etc/hosts."""
        domain = self._cluster_domain
        resolver = self._write(
            f"{pod.namespace}.resolv.conf",
            f"search {pod.namespace}.svc.{domain} svc.{domain} {domain}\n"
            f"nameserver {self._dns_address}\noptions ndots:{NDOTS}\n",
        )
        own = "".join(f"{address} {pod.name}\n" for address in pod.addresses)
        hosts = self._write(
            f"{pod.namespace}_{pod.name}.hosts",
            f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}",
        )
        return self._with_common({"/etc/resolv.conf": resolver, "/etc/hosts": hosts})

    def _write(self, name: str, text: str) -> Path:
        return self._run.write("etc", name, text=text)

    def _with_common(self, files: Mapping[str, Path]) -> Mapping[str, Path]:
        return {**self._common, **dict(self._present(files))}

    @staticmethod
    def _present(files: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
        for target, source in files.items():
            if Path(target).exists():
                yield target, source
