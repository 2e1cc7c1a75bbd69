"""The DNS proxy of a pod: names of the mesh are answered here, all others are asked upstream.

`names`, `lookup`, `message`, `resolv_conf` and `resolver` are pure: they see bytes and records,
never a socket. `forward` and `server` do the input and output, under trio.
"""
