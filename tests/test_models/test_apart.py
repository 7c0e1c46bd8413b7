"""Random state beside the student's."""

import subprocess
import sys

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


class OtherGPUs:
    """The generators of GPUs, as torch keeps them: seeded at the first use with the last seed that was queued."""

    def __init__(self) -> None:
        self.used, self.seed = False, 67280421310721

    def manual_seed_all(self, seed: int) -> None:
        self.seed = seed


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> OtherGPUs:
    found = OtherGPUs()
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', found.manual_seed_all)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: found.used)
    return found


@pytest.mark.parametrize('used_inside', [False, True])
def test_a_gpu_that_is_used_later_has_the_students_seed(gpus: OtherGPUs, used_inside: bool) -> None:
    torch.manual_seed(5)
    with apart.own_randomness():
        assert gpus.seed != 5
        with apart.own_randomness(3):
            gpus.used = used_inside
    assert gpus.seed == 5
    gpus.used = False
    with pytest.raises(RuntimeError, match='inside'), apart.own_randomness():
        raise RuntimeError('inside')
    assert gpus.seed == 5


def test_the_seed_that_torch_has_queued_for_the_gpus_is_the_students(monkeypatch: pytest.MonkeyPatch) -> None:
    queued = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    monkeypatch.setattr(torch.cuda.random, '_lazy_call', lambda seed_gpus, **how: queued.append(seed_gpus))
    monkeypatch.setattr(torch.cuda.random, 'device_count', lambda: 2)
    generators = [torch.Generator() for _ in range(2)]
    monkeypatch.setattr(torch.cuda, 'default_generators', generators, raising=False)
    torch.manual_seed(11)
    with apart.own_randomness():
        pass
    queued[-1]()  # as at the first use of CUDA
    assert [generator.initial_seed() for generator in generators] == [11, 11]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_the_student_draws_the_same_on_a_gpu_that_was_not_used_before() -> None:
    code = (
        'import torch; from mmkd.models.apart import own_randomness; torch.manual_seed(5)\n'
        'with {}: pass\n'
        'print(torch.rand(3, device="cuda").tolist())'
    )
    drawn = [
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code.format(around)], capture_output=True, text=True, check=True
        ).stdout
        for around in ('own_randomness()', 'torch.no_grad()')
    ]
    assert drawn[0] == drawn[1]


def test_one_process_draws_what_it_always_drew() -> None:
    torch.manual_seed(4)
    with apart.own_randomness(0x6D6B6B65 + 7):
        expected = tuple(torch.rand(3).tolist())
    assert Drawing(7).draw() == expected
