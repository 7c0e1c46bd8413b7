"""Where the time of a training step goes; measures nothing until somebody listens."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepClock:
    """Times the parts of a step without waiting for the device.

    On CUDA the marks are events in the stream, which are read when the device has passed them; else wall-clock time.

    Args:
        now: gives seconds where there is no GPU.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.listening = False
        self._seconds = now
        self._cuda = False
        self._start: Any = None
        self._spans: list[tuple[str, Any, Any]] = []
        self._steps: list[tuple[Any, Any, list[tuple[str, Any, Any]]]] = []

    def __deepcopy__(self, memo: dict) -> 'StepClock':
        """A fresh one: a copy of the model (EMA) takes no steps."""
        return StepClock()

    def _now(self) -> Any:
        if not self._cuda:
            return self._seconds()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is counted under the name, as often as it happens in a step.

        Not in a step that is compiled as a whole (MMEngine's `compile`): marks would break the graph.
        """
        if not self.listening or torch.compiler.is_compiling():
            yield
            return
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def begin(self, device: torch.device) -> None:
        """A step begins; what an unfinished one left is forgotten."""
        self.listening, self._cuda = True, device.type == 'cuda'
        self._spans, self._start = [], self._now()

    def end(self) -> None:
        """The step is over."""
        if self._start is not None:
            self._steps.append((self._start, self._now(), self._spans))
        self.listening, self._start, self._spans = False, None, []

    def finished(self) -> list[dict[str, float]]:
        """Seconds of each part, and of the whole `step`, for the steps that are over on the device too; once each."""
        found = []
        while self._steps and (not self._cuda or self._steps[0][1].query()):
            start, end, spans = self._steps.pop(0)
            seconds = dict(step=self._between(start, end))
            for name, first, last in spans:
                seconds[name] = seconds.get(name, 0.0) + self._between(first, last)
            found.append(seconds)
        return found

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._cuda else end - start
