"""Random state of a process, as a checkpoint keeps it."""

import random

import numpy as np
import pytest
import torch

from mmkd.engine.random_state import get_random_state, preserved_random_state, set_random_state


def draw() -> tuple:
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_what_is_drawn_goes_on_where_it_was() -> None:
    random.gauss(0, 1)
    np.random.randn()
    state = get_random_state()
    first = draw()
    with preserved_random_state():
        draw()
    second = draw()
    set_random_state(state)
    assert (draw(), draw()) == (first, second)


def test_of_several_gpus_a_process_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed on nodes of another size it is there again, however many GPUs are seen."""
    own, found = torch.tensor([1, 2, 3], dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda: own)
    monkeypatch.setattr(torch.cuda, 'set_rng_state', found.append)
    state = get_random_state()
    assert state['cuda'] == [own] and get_random_state(cuda=False)['cuda'] == []
    set_random_state(state)
    set_random_state(dict(state, cuda=[]))  # of a training on the CPU
    assert len(found) == 1 and torch.equal(found[0], own)
