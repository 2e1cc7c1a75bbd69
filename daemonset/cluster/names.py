"""What our parts are called in a cluster (see daemonset/manifests)."""

SYSTEM = "ambient-system"
AGENT, ZTUNNEL, CONTROL_PLANE = "ambient-agent", "ztunnel", "ambient-control-plane"
PART_OF = "app.kubernetes.io/part-of"
US = "ambientd"
ZDS_FOLDER = "/var/run/ztunnel"
"""Of the socket where ztunnel connects to its agent, ours or another mesh's."""
