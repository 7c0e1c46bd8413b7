"""What makes a loaded, frozen network cheaper to run, each step in place: folding, casting, layout, compiling."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkd.models.algorithms.roi_forward import PREFIX
from mmkd.models.algorithms.teacher_options import TeacherOptions

# These alone are cast: autocast brings whatever they are given to their type. By name, since mmcv has its own.
CAST = ('Conv2d', 'ConvTranspose2d', 'Linear')
CAST_MODULES = ('torch.nn', 'mmcv.cnn.bricks.wrappers')


def _plain(module: nn.Module, names: Iterable[str]) -> bool:
    return type(module).__name__ in names and type(module).__module__.startswith(CAST_MODULES)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def cast_weights(model: nn.Module, dtype: torch.dtype, *, rois: bool = True) -> None:
    """Cast the weights of convolutions and linear layers; norms keep float32.

    Args:
        model: in eval mode.
        dtype: that they get.
        rois: the RoI head is run, and keeps float32 as mmcv's RoIAlign needs it; else it only takes memory.
    """
    for name, module in model.named_modules():
        if _plain(module, CAST) and not (rois and name.startswith(PREFIX)):
            module.to(dtype)


def fold_batch_norms(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Fold BatchNorm layers into the convolutions whose output they alone were seen to read.

    With `s = g / sqrt(v + eps)`, `y = s (w * x + b - m) + h` becomes `w' = s w` and `b' = s (b - m) + h`.
    A layer that somebody listens to is left alone, and so is a convolution with several readers.

    Args:
        model: in eval mode.
        forward: runs the network once.

    Returns:
        How many were folded.
    """
    names = {module: name for name, module in model.named_modules()}
    seen = _Readers(names)
    with seen, torch.no_grad():
        forward()
    folded = 0
    for conv, norm in seen.pairs():
        if _hooked(conv) or _hooked(norm) or norm.running_var is None:
            continue
        _fold(conv, norm)
        parent, _, child = names[norm].rpartition('.')
        setattr(model.get_submodule(parent), child, nn.Identity())
        folded += 1
    return folded


@torch.no_grad()
def _fold(conv: nn.Module, norm: _BatchNorm) -> None:
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    shift = shift * factor + (0 if norm.bias is None else norm.bias)
    conv.weight = nn.Parameter(conv.weight * factor.reshape(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter(shift, requires_grad=False)


class _Readers:
    """Which module reads which convolution's output, told by the identity of tensors in one forward."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.modules = [module for module in names if not list(module.children())]
        self.read: dict[nn.Module, set[nn.Module]] = defaultdict(set)
        self.written: dict[nn.Module, set[nn.Module]] = defaultdict(set)
        self._handles: list[Any] = []
        self._outputs: dict[int, tuple[weakref.ref, nn.Module]] = {}

    def __enter__(self) -> '_Readers':
        for module in self.modules:
            self._handles.append(module.register_forward_hook(self._note))
        return self

    def __exit__(self, *exc: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def _note(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        source = self._outputs.get(id(inputs[0])) if inputs else None
        if source is not None and source[0]() is inputs[0]:
            self.read[source[1]].add(module)
            self.written[module].add(source[1])
        elif isinstance(module, _BatchNorm):
            self.written[module].add(module)  # reads something that is no convolution's
        if _plain(module, ('Conv2d',)):
            self._outputs[id(output)] = (weakref.ref(output), module)  # an id may be given again

    def pairs(self) -> list[tuple[nn.Module, _BatchNorm]]:
        """Convolution and BatchNorm that read and are read by each other alone."""
        single = [(conv, next(iter(readers))) for conv, readers in self.read.items() if len(readers) == 1]
        return [(conv, norm) for conv, norm in single if isinstance(norm, _BatchNorm) and self.written[norm] == {conv}]


def compile_parts(model: nn.Module, arguments: dict[str, Any], *, skip: tuple[str, ...] = (PREFIX,)) -> list[str]:
    """Compile the forward of the largest parts inside of which nobody listens.

    A hook inside would break the graph or be lost. Hooks on the part itself run outside, as before.

    Args:
        model: children are looked at, never the model itself, whose forward has several modes.
        arguments: of `torch.compile`.
        skip: beginnings of names that stay as they are.

    Returns:
        Names of the compiled parts.
    """
    compiled: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        if any(f'{name}.'.startswith(prefix) for prefix in skip) or not list(module.parameters()):
            return
        container = isinstance(module, nn.ModuleList | nn.ModuleDict)  # is never called itself
        if container or any(_hooked(child) for child in module.modules() if child is not module):
            for child_name, child in module.named_children():
                visit(child, f'{name}.{child_name}')
            return
        module.forward = torch.compile(module.forward, **arguments)
        compiled.append(name)

    for name, child in model.named_children():
        if name != 'data_preprocessor':
            visit(child, name)
    return compiled


def make_cheap(model: nn.Module, options: TeacherOptions, forward: Callable[[], Any], *, rois: bool = True) -> None:
    """Apply the options of a teacher to its network.

    Args:
        model: frozen, loaded, in eval mode.
        options: what to apply.
        forward: runs the network once, as it stands.
        rois: its RoI head is run, by that forward or later.
    """
    if options.fold_bn:
        fold_batch_norms(model, forward)
    if options.precision in ('bf16', 'fp16'):
        cast_weights(model, options.dtype, rois=rois)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
        keep_usual_layout(model)
    if options.compile:
        compile_parts(model, {} if options.compile is True else dict(options.compile))


def keep_usual_layout(model: nn.Module) -> None:
    """Give mmcv's own operators what they read by address: maps and weights in the layout (N, C, H, W).

    Deformable convolution and CARAFE take any other layout for that one, and do not say so.
    """

    def usual(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(_usual, args)), {name: _usual(value) for name, value in kwargs.items()}

    for module in model.modules():
        if type(module).__module__.startswith('mmcv.ops'):
            module.to(memory_format=torch.contiguous_format)  # with the convolution that makes its offsets
            module.register_forward_pre_hook(usual, with_kwargs=True)


def _usual(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def relative_difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest of `|a - b| / |b|` (L2) over pairs of tensors.

    Args:
        before: features that the others are compared with.
        after: as many, of the same shapes.

    Returns:
        At least 0; infinite where one of `after` is not finite.

    Raises:
        FloatingPointError: one of `before` is not finite, so that nothing can be compared with it.
    """
    if not all(bool(torch.isfinite(b).all()) for b in before):
        raise FloatingPointError('before must be finite, got NaN or infinity.')
    if not all(bool(torch.isfinite(a).all()) for a in after):
        return float('inf')
    pairs = zip(before, after, strict=True)
    return max((float(_norm(a - b) / _norm(b).clamp_min(1e-12)) for b, a in pairs), default=0.0)


def _norm(value: Tensor) -> Tensor:
    # squares of large float32 numbers would overflow, and inf / inf be lost in `max`
    return torch.linalg.vector_norm(value, dtype=torch.float64)
