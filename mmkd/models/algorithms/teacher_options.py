"""How a frozen teacher is run: precision, memory layout, folded BatchNorm, compiled or not."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mmkd.near_names import nearest

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class TeacherOptionError(RuntimeError):
    """An option of the teacher that this machine, this release of torch or this network cannot serve."""

    user_mistake = True


@dataclass(frozen=True)
class TeacherOptions:
    """What makes a teacher cheaper; the defaults run it as MMDetection would.

    Args:
        precision: `'fp32'`, `'bf16'` or `'fp16'`, whatever the student's is; None follows the step around it (float32,
            or what `--amp` says). A RoI head that is run stays in float32 where a precision is given.
        channels_last: memory layout (N, H, W, C) of weights and features.
        fold_bn: BatchNorm layers are folded into the convolutions before them.
        compile: `torch.compile` of the parts that hold no recorded layer; a dictionary is its arguments.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: the precision is unknown.
    """

    precision: str | None = None
    channels_last: bool = False
    fold_bn: bool = False
    compile: bool | Mapping[str, Any] = False

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f'teacher.precision must be one of {list(PRECISIONS)} or None, got {self.precision!r}.')
        for name in ('channels_last', 'fold_bn'):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f'teacher.{name} must be True or False, got {getattr(self, name)!r}.')
        if not isinstance(self.compile, bool | Mapping):
            raise TypeError(f'teacher.compile must be True, False or arguments of torch.compile, got {self.compile!r}.')

    def __bool__(self) -> bool:
        """Whether anything differs from the plain network."""
        return self != TeacherOptions()

    def __str__(self) -> str:
        """The options that are on, as `bf16, channels_last`."""
        on = {name: value for name, value in asdict(self).items() if value}
        precision = [on.pop('precision')] if 'precision' in on else []
        return ', '.join([*precision, *on]) or 'plain'

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision's type of numbers, where one is given."""
        return None if self.precision is None else PRECISIONS[self.precision]

    @property
    def tolerance(self) -> float:
        """How far features may be from the plain ones (relative L2) for rounding to be the reason."""
        return 0.2 if self.precision in ('bf16', 'fp16') else 0.05

    def check_device(self, device: torch.device) -> None:
        """Refuse what the device cannot do.

        Raises:
            TeacherOptionError: the message says what to use instead.
        """
        if self.precision == 'fp16' and device.type == 'cpu':
            raise TeacherOptionError(
                "teacher.precision='fp16' is for GPUs: on a CPU it gains nothing and overflows early. Use 'bf16', "
                'which pays on CPUs with AMX or AVX512-BF16, or leave the precision out.'
            )
        if self.precision == 'bf16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported(False):
            raise TeacherOptionError(
                f"teacher.precision='bf16' is not supported by {torch.cuda.get_device_name(device)}. Use 'fp16'."
            )

    def context(self, device: torch.device) -> AbstractContextManager:
        """Where the teacher's forward runs, features and dense heads."""
        if self.precision is None:
            return nullcontext()
        if self.precision == 'fp32':
            return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, dtype=self.dtype)

    def restore(self, feature: Tensor) -> Tensor:
        """A feature as the losses expect it: float32 where a precision is given, in the usual layout."""
        if self.precision is not None and feature.is_floating_point():
            feature = feature.float()
        return feature.contiguous()

    def exact_context(self, device: torch.device) -> AbstractContextManager:
        """Where its RoI head runs: mmcv's RoIAlign has no kernels in bf16."""
        return nullcontext() if self.precision is None else torch.autocast(device.type, enabled=False)


def split_teacher(teacher: Any) -> tuple[Any, TeacherOptions]:
    """Take `dict(config=..., precision=..., ...)` apart; anything else is a configuration without options.

    Returns:
        The configuration and the options.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an unknown option; names the nearest.
    """
    if not isinstance(teacher, Mapping) or 'config' not in teacher:
        return teacher, TeacherOptions()
    options = {key: value for key, value in teacher.items() if key != 'config'}
    known = [field.name for field in fields(TeacherOptions)]
    for key in options:
        if key not in known:
            raise ValueError(f'teacher has the unknown option {key!r}; {nearest(key, known)}.')
    return teacher['config'], TeacherOptions(**options)
