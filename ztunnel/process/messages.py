"""The kinds of messages between supervisor, control process and workers.

Each constant's comment gives the values that the message carries, in order.
"""

from typing import Final

# supervisor -> control process
WORKER: Final = 1  # slot, pid: int            fds: [channel to that worker]
WORKER_GONE: Final = 2  # slot, pid: int, how: str   that worker's process has ended
END: Final = 5  #                              the workers are gone: write down what they said, end

# supervisor -> worker
CONTROL: Final = 3  # number of the join: int fds: [channel to the control process]

# supervisor -> both
DRAIN: Final = 4  # seconds: float             take nothing new; workers end within that time

# worker -> supervisor
JOIN_AGAIN: Final = 6  # number of the join: int: its channel to the control process broke

# control process -> worker
SNAPSHOT: Final = 20  # policies: bytes       all there are; the rest of the mesh comes in updates
SNAPSHOT_END: Final = 21  #                     that was all: what has not come is no more
UPDATE: Final = 10  # sequence, resources: bytes, removed, removed policies
POD: Final = 11  # uid, serial: int, name, namespace, service account, has a namespace: bool,
#                  kinds of listeners: list[str]; fds: [namespace, *listeners of a predecessor]
POD_GONE: Final = 12  # uid
CERTIFICATE: Final = 13  # certificate as bytes
CERTIFICATE_FAILED: Final = 14  # identity uri, reason; a valid one stays in use
CERTIFICATE_WITHDRAWN: Final = 19  # identity uri, reason; the one at hand must not be used
CERTIFICATE_FORGOTTEN: Final = 22  # identity uri; it is not renewed until it is asked for again
REVOCATIONS: Final = 15  # CRL file's bytes
LOG_FILTER: Final = 16  # filter text
DUMP: Final = 17  # request id: int
LOOKED_UP: Final = 18  # key, answered: bool

# worker -> control process
APPLIED: Final = 30  # sequence: int
POD_READY: Final = 31  # uid, serial: int, kinds: list[str]; fds: [duplicates of the listeners]
POD_FAILED: Final = 32  # uid, serial: int, reason
CERTIFICATE_WANTED: Final = 33  # identity uri
LOOKUP: Final = 34  # key
LOGS: Final = 35  # bytes: whole lines
COUNTERS: Final = 36  # bytes
DUMPED: Final = 37  # request id: int, connections: list[dict]
CARRIED: Final = 41  # begun: list[Begun], ended: list[int], others: int (see carried)
KERNEL_PATHS: Final = 40  # path to "on", or why it is off: dict
POD_HELD: Final = 39  # uid, name, namespace, service account, has a namespace: bool,
#                       kinds: list[str]; fds: [namespace, *duplicates of the listeners]
STARTED: Final = 38  # names of resources that were looked up on demand: list[str]; all of its
#                      POD_HELD went before
