"""Rounds in which all arms take turns, and what they say: medians, ratios round by round, the parts of a step."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from scipy.stats import binom

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm
from mmkd.engine.hooks.cost_hook import CostHook

T = TypeVar('T')
# Steps of an arm in a GPU's queue in one turn: all but the first begin behind a step that the GPU may still work on.
QUEUED = 3


@dataclass
class Times:
    """Seconds of a step of an arm, one entry a round.

    Args:
        wall: clock time, on a GPU until the device was done.
        busy: what counts: processor time of this process on a CPU, the device's own time on a GPU.
        parts: of the algorithm's clock, by name.
    """

    wall: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)


def take_turns(arms: Sequence[Arm], rounds: int, warmup: int, device: str, queued: int = 1) -> dict[str, Times]:
    """Measure every arm once a round, in a random order (`shuffled`), so that load and neighbours hit all alike.

    Args:
        arms: what to measure.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        device: `cpu` or `cuda`.
        queued: of `queued_steps`.

    Returns:
        Times by the arm's name, of one step.
    """
    times = {arm.name: Times() for arm in arms}
    for number, order in enumerate(shuffled(arms, warmup + rounds), -warmup):
        for arm in order:
            wall, busy = step_seconds(arm.step, device, queued)
            steps = arm.clock.finished()[-queued:] if arm.clock is not None else []
            if number < 0:
                continue
            times[arm.name].wall.append(wall)
            times[arm.name].busy.append(busy)
            for name in dict.fromkeys(name for step in steps for name in step):
                seconds = sum(step.get(name, 0.0) for step in steps) / len(steps)
                times[arm.name].parts.setdefault(name, []).append(seconds)
    return times


def shuffled(things: Sequence[T], rounds: int, seed: int = 0) -> Iterator[list[T]]:
    """A random order of the same things for each round: none has always the same one before it.

    The orders depend on the seed alone, and no other random numbers of the process depend on them.

    Args:
        things: what is put in order.
        rounds: how many orders to give.
        seed: of the orders.
    """
    chance = random.Random(seed)
    for _ in range(rounds):
        yield chance.sample(list(things), len(things))


def queued_steps(asked: int | None, device: str) -> int:
    """Steps that are measured together in a turn: what was asked for, else `QUEUED` on a GPU and one on a CPU.

    Raises:
        ValueError: several on a CPU.
    """
    if device.startswith('cuda'):
        return asked or QUEUED
    if asked not in (None, 1):
        raise ValueError(
            f'--queued must be 1 with --device {device}, which works at once and has no queue, got {asked}.'
        )
    return 1


def step_seconds(step: Callable[[], Any], device: str, queued: int = 1) -> tuple[float, float]:
    """Clock seconds of a step, and those that count.

    On a GPU the steps are put into its queue one behind the other, the device is waited for once behind the last, and
    what counts is its own time from an event before the first to one behind the last. The host's work on a step (its
    Python, the launching of kernels) then hides behind the step before, as in a training, as far as it can.

    Args:
        step: does it once.
        device: `cpu` or `cuda`.
        queued: steps on a GPU; on a CPU it is one.

    Returns:
        Clock time and what counts (on a CPU the processor time of this process), both of one step.
    """
    if not device.startswith('cuda'):
        wall, busy = time.perf_counter(), time.process_time()
        step()
        return time.perf_counter() - wall, time.process_time() - busy
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    first.record()
    for _ in range(queued):
        step()
    last.record()
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    return wall / queued, first.elapsed_time(last) / 1000 / queued


def clock_words(device: str, threads: int, queued: int | None) -> str:
    """What the seconds that count are, in words.

    Args:
        device: `cpu` or `cuda`.
        threads: on the CPU.
        queued: of `queued_steps`; None for figures of before 2026-11-23, one step on a GPU by the host's clock.
    """
    if not device.startswith('cuda'):
        return 'processor time' if threads == 1 else 'processor time, the sum over all threads'
    return 'clock time' if queued is None else f"the device's time, {queued} queued step(s) a turn"


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
        and `arms` with seconds, images a second of clock time and the parts of a step.
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
        arms[name]['images_a_second'] = images / median(one.wall)
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
