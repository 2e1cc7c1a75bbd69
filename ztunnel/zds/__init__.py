"""ZDS: the node agent tells ztunnel which pods to serve, and hands over their namespaces.

`messages` is the protocol, pure; `pods` what ztunnel makes of it; `client` the connection.
The agent is the server, and lives in `daemonset.agent`.
"""
