"""The kinds of messages between supervisor, control process and workers.

Each constant's comment gives the values that the message carries, in order.
"""

from typing import Final

# supervisor -> control process
WORKER: Final = 1  # slot: int                 fds: [channel to that worker]
WORKER_GONE: Final = 2  # slot: int            that worker's process has ended

# supervisor -> worker
CONTROL: Final = 3  #                          fds: [channel to the control process]

# supervisor -> both
DRAIN: Final = 4  # seconds: float             stop accepting, end within that time

# control process -> worker
UPDATE: Final = 10  # sequence, resources: bytes, removed, removed policies, snapshot: bool
POD: Final = 11  # uid, name, namespace, service account; fds: [netns, *listeners of a predecessor]
POD_GONE: Final = 12  # uid
CERTIFICATE: Final = 13  # identity uri, certificate as bytes
CERTIFICATE_FAILED: Final = 14  # identity uri, reason
REVOCATIONS: Final = 15  # CRL file's bytes
LOG_FILTER: Final = 16  # filter text
DUMP: Final = 17  # request id: int
LOOKED_UP: Final = 18  # key, found: bool
PODS_COMPLETE: Final = 19  # uids: list[str]   the node agent's snapshot; others are to be dropped

# worker -> control process
APPLIED: Final = 30  # sequence: int, rejections: list[(name, reason)]
POD_READY: Final = 31  # uid, kinds of listeners: list[str]; fds: [duplicates of the listeners]
POD_FAILED: Final = 32  # uid, reason
CERTIFICATE_WANTED: Final = 33  # identity uri
LOOKUP: Final = 34  # key
LOGS: Final = 35  # bytes, dropped: int
COUNTERS: Final = 36  # bytes
DUMPED: Final = 37  # request id: int, connections: list[dict]
STARTED: Final = 38  # pid: int                asks for a snapshot
