"""The kernel, and nothing but the kernel: namespaces, sockets, descriptors, netlink.

Every worker imports `netns`, `sockets`, `fds` and `tcp_info`. The others speak netlink: rules and
connections of pods (`nftables`, `conntrack`, `packet_queue`, `tcp_sockets`), and for whoever sets
networks up, `routing` and `veth`.
"""
