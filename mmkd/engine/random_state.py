"""The random state of a process, as plain values that a checkpoint can hold."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def get_random_state(*, cuda: bool = True) -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, readable without executing code.

    Args:
        cuda: that of the process's own GPU too, which a loader's worker must not touch.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=[version, list(internal), gauss],
        numpy=[name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        torch=torch.get_rng_state(),
        cuda=[torch.cuda.get_rng_state()] if cuda and torch.cuda.is_available() else [],
    )


def on_cpu(state: Any) -> Any:
    """The same nest of dictionaries, lists and tuples with every tensor on the CPU.

    MMEngine loads a checkpoint to the GPU, from where a loader's forked worker could not fetch its state.
    """
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return type(state)(map(on_cpu, state)) if isinstance(state, list | tuple) else state


def set_random_state(state: dict[str, Any], *, cuda: bool = True) -> None:
    """Restore what `get_random_state` gave."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if cuda and torch.cuda.is_available() and state['cuda']:
        torch.cuda.set_rng_state(state['cuda'][0].cpu())


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
