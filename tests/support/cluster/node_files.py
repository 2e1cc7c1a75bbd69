"""What lies on a node's disk before it is switched on for the first time, and what it runs."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from tests.support.cluster.cgroups import only_v2
from tests.support.cluster.links import API_PORT, HOST_V4, PODS_V4, PODS_V6, NodeAddresses
from tests.support.kube.api import Json
from tests.support.kube.binaries import find
from tests.support.kube.keys import Keys

DNS_ADDRESS = "10.96.0.10"
PAUSE_IMAGE = "localhost/pause:1"
CNI_PLUGINS = Path("/usr/lib/cni")
_CNI_NAMES = ("ptp", "host-local", "portmap", "loopback")
_OVERLAYS = ("/etc", "/opt", "/var/lib", "/var/log")
# Not on an overlay: containerd makes overlays of its own there, the kubelet mounts volumes.
_KEPT = ("/var/lib/containerd", "/var/lib/kubelet")


@dataclass(frozen=True, slots=True)
class Boot:
    """What `node_init` reads. `overlays` are folders of the machine that the node writes to without
    the machine's seeing it, `kept` those that are the node's alone; both survive a reboot."""

    name: str
    folder: str
    logs: str
    only_v2: bool
    overlays: tuple[str, ...]
    kept: tuple[str, ...]
    images: tuple[str, ...]
    programs: dict[str, list[str]]


def write_disk(
    folder: Path,
    logs: Path,
    name: str,
    addresses: NodeAddresses,
    keys: Keys,
    images: list[Path],
) -> Path:
    """Fill a node's folder; the file for `node_init`.

    Args:
        folder: what the node's disk has.
        logs: where its programs write what they have to say, and its pods (in `pods`).
        images: the archives of all that its pods may run.

    Raises:
        Unavailable: a binary is missing.
    """
    for each in _OVERLAYS:
        layer = folder / "root" / each.strip("/").replace("/", "-")
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
    for each in _KEPT:
        (folder / "kept" / each.strip("/").replace("/", "-")).mkdir(parents=True)
    etc = folder / "root/etc/upper"
    kubernetes, network = etc / "kubernetes", etc / "cni/net.d"
    plugins = folder / "root/opt/upper/cni/bin"
    for made in (kubernetes / "manifests", network, plugins, logs):
        made.mkdir(parents=True)
    for plugin in _CNI_NAMES:
        shutil.copy(CNI_PLUGINS / plugin, plugins)
    (network / "10-ptp.conflist").write_text(json.dumps(_network(addresses)))
    keys.server(f"{name}-serving", [*addresses.both, name])
    keys.client(name, f"system:node:{name}", "system:nodes")
    url = f"https://{HOST_V4}:{API_PORT}"
    for source in (f"{name}-serving.crt", f"{name}-serving.key", "ca.crt"):
        shutil.copy(keys.folder / source, kubernetes)
    shutil.copy(keys.kubeconfig(name, url), kubernetes / "kubelet.kubeconfig")
    shutil.copy(keys.kubeconfig("kube-proxy", url), kubernetes / "proxy.kubeconfig")
    (kubernetes / "containerd.toml").write_text(_CONTAINERD)
    (kubernetes / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(name)))
    boot = Boot(
        name,
        str(folder),
        str(logs),
        only_v2(),
        _OVERLAYS,
        _KEPT,
        tuple(map(str, images)),
        {
            "containerd": ["containerd", "--config=/etc/kubernetes/containerd.toml"],
            "kubelet": [
                str(find("kubelet")),
                "--config=/etc/kubernetes/kubelet.yaml",
                "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
                f"--hostname-override={name}",
                f"--node-ip={','.join(addresses.both)}",
            ],
            "kube-proxy": [
                str(find("kube-proxy")),
                "--kubeconfig=/etc/kubernetes/proxy.kubeconfig",
                f"--hostname-override={name}",
                "--proxy-mode=nftables",
                f"--cluster-cidr={PODS_V4},{PODS_V6}",
                "--conntrack-max-per-core=0",
                "--healthz-bind-address=",
                "--metrics-bind-address=127.0.0.1:10249",
            ],
        },
    )
    file = folder / "boot.json"
    file.write_text(json.dumps(asdict(boot)))
    return file


def _network(addresses: NodeAddresses) -> Json:
    """kind's own scheme: a routed veth for each pod."""
    ranges = [[{"subnet": addresses.pods_v4}], [{"subnet": addresses.pods_v6}]]
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni-ipam",
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    plugins: list[Json] = [
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "0.4.0", "name": "ptp", "plugins": plugins}


def _kubelet(name: str) -> Json:
    etc = "/etc/kubernetes"
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "::",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{etc}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{etc}/{name}-serving.crt",
        "tlsPrivateKeyFile": f"{etc}/{name}-serving.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE
        "maxOpenFiles": most_files,
        "staticPodPath": f"{etc}/manifests",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "healthzBindAddress": "127.0.0.1",
        # This machine's disk is not the node's.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
    }


_CONTAINERD = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
