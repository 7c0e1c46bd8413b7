"""What a step does: operators and floating-point operations, counted, and the operators' times.

Counts are the same on every machine and in every run, however busy it is; times are not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmkd.engine.cost_arms import DISTILLED, PLAIN, TEACHER, Arm

STEPS = 3


class _Calls(TorchDispatchMode):
    """Counts the calls of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def work(arm: Arm) -> dict[str, float]:
    """What one step of an arm computes.

    Args:
        arm: what to run; it has been warmed up.

    Returns:
        `gflops`: floating-point operations / 1e9 of convolutions and matrix products, forward and backward, as
        `torch.utils.flop_counter` counts them (a multiply-add is two); `operators`: calls of torch's operators. mmcv's
        compiled operators, such as RoIAlign, are in neither.
    """
    with FlopCounterMode(display=False) as flops, _Calls() as calls:
        arm.step()
    return dict(gflops=flops.get_total_flops() / 1e9, operators=calls.number)


def operator_seconds(arm: Arm, device: str, steps: int = STEPS) -> dict[str, float]:
    """Seconds a step that each operator of torch takes itself, without those that it calls.

    Args:
        arm: what to run; it has been warmed up.
        device: `cpu`, or `cuda` for the time of the GPU's kernels.
        steps: how many to average.
    """
    cuda = device.startswith('cuda')
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiler:
        for _ in range(steps):
            arm.step()
    return {name: seconds / steps for name, seconds in own_seconds(profiler.key_averages(), cuda).items()}


def own_seconds(events: Iterable[Any], cuda: bool) -> dict[str, float]:
    """Seconds of each operator itself, without those that it calls; only of operators that took any.

    On CUDA the profiler lists every kernel twice: in the operator that launched it, and by its own name. Annotations
    (`Optimizer.step`) span operators that are listed, too. Both are left out, and so are kernels that no operator
    launched.

    Args:
        events: `key_averages()` of a profiler.
        cuda: take the time of the GPU's kernels, not of the CPU.
    """
    taken = 'self_device_time_total' if cuda else 'self_cpu_time_total'
    operators = [event for event in events if event.device_type == DeviceType.CPU and not event.is_user_annotation]
    return {event.key: getattr(event, taken) / 1e6 for event in operators if getattr(event, taken) > 0}


def profile_arms(arms: Sequence[Arm], device: str) -> dict[str, dict[str, float]]:
    """`operator_seconds` of the plain student, the teacher's features and the first distilled arm."""
    distilled = next(arm for arm in arms if arm.name.startswith(DISTILLED))
    profiled = [arm for arm in arms if arm.name in (PLAIN, TEACHER) or arm is distilled]
    return {arm.name: operator_seconds(arm, device) for arm in profiled}


def added(operators: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float]]:
    """What distillation adds to plain training and the teacher's features, the most first.

    Args:
        operators: of `profile_arms`.

    Returns:
        (operator, seconds a step) where the difference is positive. Their sum is more than what a step takes longer:
        that is `net_added`.
    """
    more = _differences(operators)
    return sorted(((op, seconds) for op, seconds in more.items() if seconds > 0), key=lambda pair: -pair[1])


def net_added(operators: Mapping[str, Mapping[str, float]]) -> float:
    """Seconds by which a distillation step is longer than plain training and the teacher's features together.

    Args:
        operators: of `profile_arms`.

    Returns:
        Sum over all operators, those that took less time included; negative where the step was shorter.
    """
    return sum(_differences(operators).values())


def _differences(operators: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    name = next(name for name in operators if name.startswith(DISTILLED))
    floor = [operators[other] for other in (PLAIN, TEACHER) if other in operators]
    known = dict.fromkeys(op for found in (operators[name], *floor) for op in found)
    return {op: operators[name].get(op, 0.0) - sum(found.get(op, 0.0) for found in floor) for op in known}
