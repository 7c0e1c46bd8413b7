"""Memory of this process: the entries, the peak, and an environment in which freed memory is given back."""

import os
import subprocess
import sys

import pytest

from mmkd.testing.process_memory import RETURN_FREED_MEMORY, forget_peak, process_memory

_KEPT = """
import torch
from mmkd.testing.process_memory import process_memory
torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
before = process_memory('VmRSS')
for rows in (64, 256, 512):
    torch.ones(rows, 576) @ torch.ones(576, 6400)
print((process_memory('VmRSS') - before) / 2**20)
"""


def test_refuses_an_entry_that_does_not_exist():
    with pytest.raises(RuntimeError, match='has no VmNothing'):
        process_memory('VmNothing')


def test_the_peak_starts_anew():
    block = bytearray(b'x') * 2**26
    assert process_memory('VmHWM') >= 2**26
    del block
    before = forget_peak()
    assert process_memory('VmHWM') - before < 2**22


def test_buffers_of_matrix_products_are_given_back():
    environment = {**os.environ, **RETURN_FREED_MEMORY}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _KEPT], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 6  # MiB: what libraries touch; with the buffers it is 15
