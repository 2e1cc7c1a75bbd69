"""The descriptor table of a worker is full, on accept and on connect."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.faults import FaultLab
from tests.support.pod_sockets import connect, echo, exchange, is_served
from tests.support.ztunnel_processes import (
    ZtunnelProcesses,
    open_descriptors,
    processor_seconds,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]

LIMIT = 160
MANY = 150


def _restart_worker_with_limit(lab: FaultLab, ztunnel: ZtunnelProcesses, limit: int) -> int:
    """A new worker that may have so many descriptors, and no more."""
    old = ztunnel.workers
    resource.prlimit(ztunnel.supervisor, resource.RLIMIT_NOFILE, (limit, limit))
    ztunnel.kill(old[0])
    lab.mesh.wait(lambda: ztunnel.workers not in ([], old), "there is a new worker")
    lab.mesh.wait(lambda: is_served(lab.mesh, "client", lab.server), "it serves")
    return ztunnel.workers[0]


@contextmanager
def _no_more(pid: int) -> Iterator[None]:
    """A process gets no further descriptor, for as long as the block lasts."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = min(set(range(len(used) + 1)) - used)  # the number that the next one would get
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _comes_to_rest(lab: FaultLab, pid: int) -> None:
    """Waits until it uses hardly any processor time for two seconds: what has begun comes to its
    end, and nothing is asked again and again."""

    def rests() -> bool:
        before = processor_seconds(pid)
        lab.mesh.mesh.wait(lambda: False, 2.0)
        return processor_seconds(pid) - before < 0.4

    lab.mesh.wait(rests, "it does not ask again and again")


def test_clients_wait_in_the_queue_until_others_have_ended(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        worker = _restart_worker_with_limit(lab, lab.near, LIMIT)
        clients = [connect(lab.mesh, "client", lab.server) for _ in range(MANY)]
        for number, sock in enumerate(clients):
            sock.sendall(bytes([number]))
            sock.setblocking(False)
        answers: dict[int, bytes] = {}

        def answered() -> int:
            for number, sock in enumerate(clients):
                if number not in answers:
                    try:
                        answers[number] = sock.recv(1)
                    except BlockingIOError:
                        continue
            return len(answers)

        lab.near.log.says("new connections wait in the queue.*nearly all 160 descriptors")
        lab.mesh.wait(lambda: answered() > LIMIT // 3, "many are served")
        _comes_to_rest(lab, worker)
        assert answered() < MANY, "not all of them find room"
        assert open_descriptors(worker) < LIMIT, "some are left for the worker's own needs"
        # One that is served goes on meanwhile, and makes room when it ends.
        served = next(iter(answers))
        clients[served].setblocking(True)
        assert exchange(clients[served], b"goes on") == b"goes on"

        def all_answered() -> bool:
            answered()
            for number in answers:
                clients[number].close()
            return len(answers) == MANY

        lab.mesh.wait(all_answered, "each has its turn")
        assert all(answers[number] == bytes([number]) for number in range(MANY))
        lab.near.log.says("there is room for new connections again")
        assert lab.near.log.count("new connections wait in the queue") == 1, "it says so once"
        assert lab.near.workers == [worker]


def test_no_descriptor_at_all_for_an_accept(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        with connect(lab.mesh, "client", lab.server) as first:
            exchange(first, b"there is a tunnel")
            (worker,) = lab.near.workers
            with _no_more(worker):
                waiting = [connect(lab.mesh, "client", lab.server) for _ in range(40)]
                for sock in waiting:
                    sock.sendall(b"patience")
                lab.near.log.says("new connections wait in the queue.*Too many open files")
                _comes_to_rest(lab, worker)
                assert exchange(first, b"goes on") == b"goes on"
            for sock in waiting:
                assert sock.recv(100) == b"patience"
        assert lab.near.log.count("new connections wait in the queue") == 1, "it says so once"


def test_no_descriptor_for_a_connect_to_the_application(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000), connect(lab.mesh, "client", lab.server) as first:
        exchange(first, b"there is a tunnel")
        (worker,) = lab.far.workers
        with _no_more(worker):
            refused = 0
            for _ in range(40):  # sockets that were made ahead are used up first
                try:
                    exchange(connect(lab.mesh, "client", lab.server), b"is there room?")
                except ConnectionError:
                    refused += 1
            assert refused > 0
            lab.far.log.says("access.*(Too many open files|no descriptors are left)")
            _comes_to_rest(lab, worker)
            assert exchange(first, b"goes on") == b"goes on"
        with connect(lab.mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
        assert lab.far.workers == [worker]


def test_a_worker_without_descriptors_joins_a_new_control_process_in_the_end(
    lab: FaultLab,
) -> None:
    with echo(lab.mesh, "server", 7000), connect(lab.mesh, "client", lab.server) as held:
        exchange(held, b"before")
        (worker,) = lab.near.workers
        old = lab.near.control
        with _no_more(worker):
            lab.near.kill(old)
            lab.mesh.wait(lambda: lab.near.control not in (0, old), "there is a successor")
            assert exchange(held, b"meanwhile") == b"meanwhile"
            # What the worker says of it nobody hears yet; the supervisor speaks for itself.
            lab.mesh.wait(lambda: lab.near.log.count("joined again") > 1, "several attempts")
        lab.mesh.wait(lab.near.ready, "the worker has joined it")
        assert exchange(held, b"after") == b"after"
        assert lab.near.workers == [worker], "the worker has not died of it"
        lab.near.log.says("the control process cannot be joined: .*; trying again")
        assert lab.near.log.count("cannot be joined") == 1, "it says so once"
