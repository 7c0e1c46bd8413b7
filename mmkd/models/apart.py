"""What a method adds beside the plain student: saved apart, and drawn from random state of its own."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn


class SavedApart(nn.Module):
    """A module whose state stays out of `state_dict`, to be saved beside it by `saved_state`."""

    def state_dict(self, *args: Any, destination: dict | None = None, **kwargs: Any) -> dict:
        """Nothing, whoever asks: MMEngine's checkpoint and EMA get the plain student."""
        return OrderedDict() if destination is None else destination

    def saved_state(self) -> dict[str, Tensor]:
        """The real state: detached copies on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in nn.Module.state_dict(self).items()}

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Load what `saved_state` gave.

        Raises:
            RuntimeError: missing, unexpected or wrongly shaped entries.
        """
        nn.Module.load_state_dict(self, state, strict=True)


def load_apart(model: nn.Module, states: Mapping[str, dict]) -> list[str]:
    """Load what a training saved beside its student: connectors, self-teacher.

    Args:
        model: an algorithm.
        states: `checkpoint['mmkd']`, by name.

    Returns:
        Names of the modules with parameters that `states` does not have; they stay as they are.

    Raises:
        RuntimeError: a state is of another method or pair.
    """
    missing = []
    for name, module in model.apart_modules().items():
        if name in states:
            try:
                module.load_saved_state(states[name])
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise RuntimeError(f'The {name} is of another method or pair: {reason}') from error
        elif any(True for _ in module.parameters()):
            missing.append(name)
    return missing


@contextmanager
def own_randomness(seed_offset: int = 0x6D6B6B64) -> Iterator[None]:
    """Random state of mmkd's own: what is drawn inside changes nothing outside, on a GPU either.

    The seed follows the run's (`torch.initial_seed`), so that another seed gives other connectors too. Where CUDA has
    not been used yet, its generators are taken to have that seed, too, as after `torch.manual_seed`.
    """
    initialised, outside = torch.cuda.is_initialized(), torch.initial_seed()
    devices = list(range(torch.cuda.device_count())) if initialised else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((outside + seed_offset) % 2**63)
            yield
    finally:
        if not initialised:  # torch keeps the last seed for the GPUs until their first use, which would be ours
            torch.cuda.manual_seed_all(outside)


def drawn_apart(method: Callable) -> Callable:
    """Decorator of a method that may draw random numbers, such as the masks of MMRazor's `MGDConnector`.

    They are a function of the run's seed, of `self.step` and of the process, so that they change from step to step,
    differ between the images of two processes, are the same after a resume, and leave the student's random numbers
    (sampled boxes, dropout) as they are without distillation.
    """

    @wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with own_randomness(0x6D6B6B65 + self.step * get_world_size() + get_rank()):
            return method(self, *args, **kwargs)

    return wrapped
