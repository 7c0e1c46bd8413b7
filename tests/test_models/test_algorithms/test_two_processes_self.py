"""Two processes equal one, for the self-distillation methods, without `find_unused_parameters`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / 'self_distillation_ranks.py'


def run(method: str, out: Path, world: int) -> dict:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = os.environ | dict(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(world), OMP_NUM_THREADS='1'
    )
    command = [sys.executable, '-W', 'ignore', str(SCRIPT), method, str(out)]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ranks = [subprocess.Popen(command, env=shared | dict(RANK=str(rank)), **pipes) for rank in range(world)]
    for process in ranks:
        errors = process.communicate(timeout=180)[1]
        assert process.returncode == 0, errors[-3000:]
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['mssd', 'frskd'])
def test_two_processes_equal_one(method, tmp_path):
    one, two = (run(method, tmp_path / f'{world}.pth', world) for world in (1, 2))
    assert one['losses'].keys() == two['losses'].keys() and one['grads'].keys() == two['grads'].keys()
    for name, value in one['losses'].items():
        torch.testing.assert_close(two['losses'][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f'{n}: {m}')
    largest = max(float(grad.abs().max()) for grad in one['grads'].values())
    for name, grad in one['grads'].items():
        # a bias before a standardisation has gradient 0 but for rounding
        scale = max(float(grad.abs().max()), 1e-4 * largest)
        torch.testing.assert_close(
            two['grads'][name] / scale, grad / scale, rtol=0, atol=2e-3, msg=lambda m, n=name: f'{n}: {m}'
        )
