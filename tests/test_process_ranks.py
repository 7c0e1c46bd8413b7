"""Which process this is, before any process group exists."""

import os

import pytest

from mmkd import process_ranks
from mmkd.engine.command_line import set_local_rank


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*process_ranks.LOCAL_RANKS, *process_ranks.RANKS):
        monkeypatch.setenv(name, '')  # so that what is set below is taken back
        monkeypatch.delenv(name)


@pytest.mark.parametrize('names', [('LOCAL_RANK', 'RANK'), ('SLURM_LOCALID', 'SLURM_PROCID')])
def test_every_launcher_is_understood(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (process_ranks.local_rank(), process_ranks.global_rank()) == (0, 0)
    monkeypatch.setenv(names[0], '3')
    monkeypatch.setenv(names[1], '11')
    assert (process_ranks.local_rank(), process_ranks.global_rank()) == (3, 11)


@pytest.mark.parametrize(
    ('launcher', 'variables', 'expected'),
    [
        ('pytorch', {}, '2'),
        ('pytorch', dict(LOCAL_RANK='1'), '1'),
        ('mpi', dict(OMPI_COMM_WORLD_LOCAL_RANK='5'), '5'),  # and not the argument, which is 0 under mpirun
        ('slurm', dict(SLURM_LOCALID='4'), None),
        ('none', {}, None),
    ],
)
def test_the_variable_that_mmengine_reads(
    launcher: str, variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    set_local_rank(2, launcher)
    assert os.environ.get('LOCAL_RANK') == expected
    os.environ.pop('LOCAL_RANK', None)
