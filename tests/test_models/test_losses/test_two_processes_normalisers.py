"""Sums of masks and numbers of positives are those of all processes: two with unequal shares equal one with all images.

Real processes and DDP, three images of which one process has the first, with little or nothing to look at.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .normaliser_ranks import CASES, SHAPES, SHARES, result


def by_two(folder: Path, device: str) -> list[dict]:
    """What each of two processes found."""
    worker = str(Path(__file__).with_name('normaliser_ranks.py'))
    outs = [folder / f'rank{rank}.pth' for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, worker, str(rank), str(folder / 'store'), str(out), device])
        for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return by_two(tmp_path_factory.mktemp('ranks'), 'cpu')


def check(ranks: list[dict], case: str, shape: str, rtol: float = 1e-9) -> None:
    """Mean loss and averaged gradients are those of one process."""
    whole = result(case, shape)
    first, second = (rank[f'{case}-{shape}'] for rank in ranks)
    torch.testing.assert_close((first['loss'] + second['loss']) / 2, whole['loss'], rtol=rtol, atol=0)
    for name, expected in whole['gradients'].items():
        assert torch.equal(first['gradients'][name], second['gradients'][name])
        # a bias in front of a normalisation has no gradient but rounding
        torch.testing.assert_close(first['gradients'][name], expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('case', CASES)
def test_unequal_shares_equal_the_joined_batch(ranks: list[dict], case: str, shape: str) -> None:
    check(ranks, case, shape)


@pytest.mark.parametrize('case', CASES)
def test_a_normaliser_of_one_process_alone_would_be_seen(case: str) -> None:
    """Here there is one process, whose normaliser is its own: the mean of two such losses is far from the whole."""
    mean = sum(result(case, 'unequal', share)['loss'] for share in SHARES) / 2
    assert float(mean) != pytest.approx(float(result(case, 'unequal')['loss']), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_gpus_equal_the_joined_batch(tmp_path: Path) -> None:
    ranks = by_two(tmp_path, 'cuda')
    for case in CASES:
        for shape in SHAPES:
            check(ranks, case, shape, rtol=1e-7)
