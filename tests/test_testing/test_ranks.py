"""Work in several forked processes: what each is told, how it ends, and one that outlives the others."""

import os
import signal
import time
from pathlib import Path

import pytest

from mmkd.testing import ranks
from mmkd.testing.ranks import in_ranks


def say(rank: int) -> None:
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')
    os.write(1, (' '.join([str(rank), *(os.environ.get(name, '-') for name in names)]) + '\n').encode())


def test_each_rank_is_told_what_torchrun_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    log = tmp_path / 'log'
    assert in_ranks(say, log).codes == (0,)
    ended = in_ranks(say, log, 2)
    assert (ended.codes, ended.seconds) == ((0, 0), 0)
    lines = log.read_text().splitlines()
    assert lines[0] == '0 - - - -'
    assert sorted(lines[1:]) == ['0 0 0 2 127.0.0.1', '1 1 1 2 127.0.0.1']


class Clock:
    """Stands in for `time` where the ranks are waited for: shows how often was waited since the first look, at most 3.

    The third time it makes the file `go`.
    """

    def __init__(self, go: Path) -> None:
        self.go, self.shown = go, None

    def monotonic(self) -> float:
        self.shown = self.shown or 0.0
        return self.shown

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        if self.shown is not None and self.shown < 3:
            self.shown += 1
            if self.shown == 3:
                self.go.touch()


def test_the_ends_of_all_and_the_time_between_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / 'go'
    monkeypatch.setattr(ranks, 'time', Clock(go))

    def fall(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(60_000):  # against hanging alone
            if go.exists():
                raise ValueError('the other is gone')
            time.sleep(0.01)

    ended = in_ranks(fall, tmp_path / 'log', 2)
    assert (ended.codes, ended.seconds) == ((1, -signal.SIGKILL), 3)
    assert (tmp_path / 'log').read_text() == 'ValueError: the other is gone\n'


def stay(rank: int) -> None:
    if rank == 0:
        raise ValueError
    time.sleep(600)


def test_a_rank_that_outlives_the_others_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, 'LIMIT', 0.1)
    with pytest.raises(RuntimeError, match=r'The ranks \[1\] did not end'):
        in_ranks(stay, tmp_path / 'log', 2)
