"""Operators without a CPU implementation (CARAFE, MaskedConv2d, ...), met where networks run dry on the CPU."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.process_ranks import local_rank

# What mmcv's operators and torch's dispatcher say.
NOT_ON_CPU = re.compile(
    r"implementation for device cpu not found|from the 'CPU' backend|not implemented on (the )?CPU", re.IGNORECASE
)


class MissingOperatorError(RuntimeError):
    """A layer that needs a GPU, on a machine without one."""

    user_mistake = True


def gpu_of_this_process() -> torch.device | None:
    """The GPU of this process, if there is one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device('cuda', local_rank() % count) if count else None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def _forward(layer: nn.Module, plain: Callable[..., Any], where: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return plain(*args, **kwargs)
    except RuntimeError as error:
        if isinstance(error, MissingOperatorError) or not NOT_ON_CPU.search(str(error)):
            raise
        gpu = gpu_of_this_process()
        if gpu is None:
            raise MissingOperatorError(
                f'{where} ({type(layer).__name__}), needs an operator that has no CPU implementation '
                f'({str(error).strip().splitlines()[0]}), and this machine has no GPU that torch can use. Train and '
                'check this network on a machine with a GPU, or replace the layer.'
            ) from error
    try:
        layer.to(gpu)
        moved = {name: _moved(value, gpu) for name, value in kwargs.items()}
        return _moved(plain(*_moved(args, gpu), **moved), torch.device('cpu'))
    finally:
        layer.to('cpu')


@contextmanager
def lent_operators(**networks: nn.Module) -> Iterator[None]:
    """Let a layer of networks on the CPU run on the GPU while the context is open, if the CPU lacks its operator.

    The innermost layer that fails is moved to the GPU for its forward and back; its output is on the CPU.

    Args:
        networks: by what they are in messages: `student`, `teacher`.

    Raises:
        MissingOperatorError: there is no GPU; names the network and the layer.
    """
    patched = []
    for side, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, torch.jit.ScriptModule) or 'forward' in vars(layer):
                continue
            where = f'The {side} {type(network).__name__}' + (f', layer {name!r}' if name else '')
            layer.__dict__['forward'] = partial(_forward, layer, layer.forward, where)
            patched.append(layer)
    try:
        yield
    finally:
        for layer in patched:
            layer.__dict__.pop('forward', None)
