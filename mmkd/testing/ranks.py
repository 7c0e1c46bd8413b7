"""A piece of work in several forked processes of this machine, as a launcher starts the ranks of a training."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Seconds that the others have to end by themselves when one has died.
LIMIT = 60.0


@dataclass(frozen=True)
class Ended:
    """How the processes ended.

    Args:
        codes: exit code of each rank; -9 for one that was killed.
        seconds: from the first that failed to the end of the last; 0 if none failed.
    """

    codes: tuple[int, ...]
    seconds: float


def free_port() -> int:
    """A port of this machine that nobody listens to, below those that the system gives to anybody."""
    for port in random.SystemRandom().sample(range(20000, 30000), 50):
        with socket.socket() as tried:
            if tried.connect_ex(('127.0.0.1', port)):
                return port
    raise OSError('50 ports between 20000 and 30000 are all in use')


def in_ranks(work: Callable[[int], None], log: Path, processes: int = 1) -> Ended:
    """Call `work(rank)` in forked processes, whose output goes to `log`, and wait for their end.

    Several have the environment that torchrun gives. No launcher ends them: when one dies, the others must do so by
    themselves.

    Args:
        work: forked children must be able to do it: no GPU, no threads before.
        log: file; written to at its end.
        processes: how many.

    Raises:
        RuntimeError: some did not end within `LIMIT` seconds after one failed; they are killed.
    """
    several = dict(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    alive = {}
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ.update({k: str(v) for k, v in dict(several, RANK=rank, LOCAL_RANK=rank).items()})
            _child(lambda rank=rank: work(rank), log)
        alive[pid] = rank
    return _wait(alive)


def _child(work: Callable[[], None], log: Path) -> None:
    code = 1
    with open(log, 'a') as file, contextlib.suppress(BaseException):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work()
            code = 0
        except BaseException as error:
            print(f'{type(error).__name__}: {error}', file=file, flush=True)
    os._exit(code)


def _wait(alive: dict[int, int]) -> Ended:
    codes, failed = {}, None
    while alive:
        for pid, rank in list(alive.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del alive[pid]
                codes[rank] = os.waitstatus_to_exitcode(status)
                failed = time.monotonic() if codes[rank] and failed is None else failed
        if failed is not None and alive and time.monotonic() - failed > LIMIT:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise RuntimeError(f'The ranks {sorted(alive.values())} did not end {LIMIT:.0f} s after another had died.')
        time.sleep(0.01)
    seconds = 0.0 if failed is None else time.monotonic() - failed
    return Ended(tuple(codes[rank] for rank in sorted(codes)), seconds)
