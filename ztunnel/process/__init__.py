"""The processes of one node's ztunnel: a supervisor, a control process, workers."""
