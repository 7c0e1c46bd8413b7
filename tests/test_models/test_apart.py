"""Random state beside the student's."""

import pytest
import torch

from mmkd.models import apart


class Drawing:
    def __init__(self, step: int) -> None:
        self.step = step

    @apart.drawn_apart
    def draw(self) -> tuple:
        return tuple(torch.rand(3).tolist())


def test_what_is_drawn_differs_between_processes_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """MGD's masks of the first image of two processes must not be the same."""
    alone = [Drawing(step).draw() for step in range(3)]
    monkeypatch.setattr(apart, 'get_world_size', lambda: 2, raising=False)
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(apart, 'get_rank', lambda rank=rank: rank, raising=False)
        drawn += [Drawing(step).draw() for step in range(3)]
        assert Drawing(1).draw() == drawn[-2]
    assert len(set(drawn)) == 6
    assert len(set(alone)) == 3


def test_one_process_draws_what_it_always_drew() -> None:
    torch.manual_seed(4)
    with apart.own_randomness(0x6D6B6B65 + 7):
        expected = tuple(torch.rand(3).tolist())
    assert Drawing(7).draw() == expected
