"""Rounds in which all arms take turns, and what they say: medians, ratios round by round, the parts of a step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from scipy.stats import binom

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm
from mmkd.engine.hooks.cost_hook import CostHook


@dataclass
class Times:
    """Seconds of an arm, one entry a round.

    Args:
        wall: clock time, on a GPU until the device was done.
        busy: what counts: processor time of this process on a CPU, clock time on a GPU.
        parts: of the algorithm's clock, by name.
    """

    wall: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)


def take_turns(arms: Sequence[Arm], rounds: int, warmup: int, device: str) -> dict[str, Times]:
    """Measure every arm once a round, in an order that moves on from round to round, so that load hits all alike.

    Args:
        arms: what to measure.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        device: `cpu` or `cuda`.

    Returns:
        Times by the arm's name.
    """
    cuda = device.startswith('cuda')
    times = {arm.name: Times() for arm in arms}
    for number in range(-warmup, rounds):
        shift = number % len(arms)
        for arm in [*arms[shift:], *arms[:shift]]:
            if cuda:
                torch.cuda.synchronize()
            wall, busy = time.perf_counter(), time.process_time()
            arm.step()
            if cuda:
                torch.cuda.synchronize()
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            parts = arm.clock.finished()[-1] if arm.clock is not None else {}
            if number < 0:
                continue
            times[arm.name].wall.append(wall)
            times[arm.name].busy.append(wall if cuda else busy)
            for name, seconds in parts.items():
                times[arm.name].parts.setdefault(name, []).append(seconds)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and `low` and `high`: the values of the rounds that hold the true median with 95 % confidence.

    By the binomial distribution of the values below it, for independent rounds: of 21 rounds the sixth and the
    sixteenth, of eight or fewer the smallest and the largest (seven: 98 %, five: 94 %, three: 75 %).
    """
    ordered = sorted(values)
    rank = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return dict(median=median(ordered), low=ordered[rank - 1], high=ordered[-rank])


def ratio(above: Sequence[float], *below: Sequence[float]) -> dict[str, float]:
    """Spread over the rounds of an arm's time divided by that of another, or by the sum of others."""
    return spread([a / sum(b) for a, *b in zip(above, *below, strict=True)])


def summarise(times: dict[str, Times], images: int) -> dict[str, Any]:
    """What is reported of one input size.

    Args:
        times: of `take_turns`.
        images: a step.

    Returns:
        `ratios` by distilled arm (`over_plain`, `over_floor`, `over_SingleTeacherDistill`, `over_FpnTeacherDistill`),
        and `arms` with seconds, images a second and the parts of a step.
    """
    busy = {name: one.busy for name, one in times.items()}
    ratios = {}
    for name in busy:
        if not name.startswith(DISTILLED):
            continue
        floor = [busy[PLAIN], busy[TEACHER]] if TEACHER in busy else [busy[PLAIN]]
        ratios[name] = dict(over_plain=ratio(busy[name], busy[PLAIN]), over_floor=ratio(busy[name], *floor))
        ratios[name] |= {f'over_{kind}': ratio(busy[name], busy[kind]) for kind in MMRAZOR if kind in busy}
    arms = {}
    for name, one in times.items():
        arms[name] = dict(seconds=spread(one.busy), wall_seconds=spread(one.wall))
        arms[name]['images_a_second'] = images / median(one.busy)
        if one.parts:
            arms[name]['parts'] = split(one.parts)
    return dict(ratios=ratios, arms=arms)


def hook_seconds(model: BaseModel, repeats: int = 200) -> float:
    """Processor seconds that `CostHook` takes in a step, by calling it without one.

    Args:
        model: an algorithm of mmkd.
        repeats: calls to average.
    """
    hook, hub = CostHook(), MessageHub(f'cost {time.perf_counter_ns()}')
    runner = SimpleNamespace(model=model, message_hub=hub, cfg={})
    hook.before_train(runner)
    start = time.process_time()
    for number in range(repeats):
        hook.before_train_iter(runner, number)
        for name in ('teacher', 'teacher', 'distill'):
            with model.clock.part(name):
                pass
        hook.after_train_iter(runner, number)
    return (time.process_time() - start) / repeats


def split(parts: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of the teacher, of connectors and losses (forward), and of all the rest of a step."""
    teacher, distill = (median(parts.get(name, [0.0])) for name in ('teacher', 'distill'))
    return dict(teacher=teacher, distill=distill, student=median(parts['step']) - teacher - distill)
