"""`NumberGuardHook` beside fused optimisers, which `GradScaler` calls for overflowed gradients too."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample

from mmkd.engine.hooks.guard_hook import NonFiniteError, NumberGuardHook


class OneWeight(torch.nn.Module):
    """A loss whose gradient is 3 at the weight 1, whatever the images; `factor` spoils it."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str) -> dict[str, torch.Tensor]:
        return dict(loss_cls=(self.weight**3).sum() * self.factor)


class FusedMixedPrecision:
    """The steps of `AmpOptimWrapper` with a fused optimiser, on the CPU, where that wrapper does not run."""

    def __init__(self, folder: Path, scale: float, **guard: int) -> None:
        self.model = OneWeight().train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, fused=True)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale, backoff_factor=2.0**-120)
        self.hook = NumberGuardHook(watch=0, **guard)
        self.runner = SimpleNamespace(model=self.model, optim_wrapper=self, iter=0, epoch=0, work_dir=str(folder))
        self.hook.before_train(self.runner)

    def step(self) -> None:
        loss = self.model(torch.zeros(1, 3, 4, 4), [DetDataSample()], mode='loss')['loss_cls']
        self.loss_scaler.scale(loss).backward()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        self.optimizer.zero_grad()
        self.hook.after_train_iter(self.runner, 0)
        self.runner.iter += 1


TOO_LARGE = 2.0**127  # three times this is infinite


def test_an_overflow_of_the_scale_is_no_fault_with_a_fused_optimiser(tmp_path: Path) -> None:
    training = FusedMixedPrecision(tmp_path, TOO_LARGE)
    training.step()
    assert training.model.weight.item() == 1 and training.hook._unstepped == 1
    training.step()
    assert training.model.weight.item() == pytest.approx(0.7) and training.hook._unstepped == 0
    assert training.hook.skipped == 0 and not list(tmp_path.iterdir())


def test_a_fused_optimiser_that_never_steps_is_stopped(tmp_path: Path) -> None:
    training = FusedMixedPrecision(tmp_path, TOO_LARGE, overflows=2)
    training.loss_scaler.set_backoff_factor(0.999)
    training.step()
    training.step()
    with pytest.raises(NonFiniteError, match='left out the last 3 steps'):
        training.step()


def test_a_loss_that_is_not_finite_is_named_with_a_fused_optimiser(tmp_path: Path) -> None:
    training = FusedMixedPrecision(tmp_path, 2.0)
    training.model.factor = math.nan
    with pytest.raises(NonFiniteError, match='loss_cls is nan'):
        training.step()
