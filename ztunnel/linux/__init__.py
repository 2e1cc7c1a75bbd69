"""The kernel, and nothing but the kernel: namespaces, sockets, descriptors, netlink.

Workers import `netns`, `sockets`, `fds` and `tcp_info`; `netlink`, `nftables` and `routing` are for
whoever sets a pod's capture up.
"""
