"""Progress of an experiment with the time that is left: bars in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmkd.testing.methods import PLAIN, PLAIN_TIME, TEACHER
from mmkd.testing.runs import Run

_GUESS = {TEACHER: 3.0, PLAIN: 1.0, PLAIN_TIME: 1.0}  # cost of a step against plain, until it has been seen
_GUESS_DISTILLED = 2.3


class ProgressBoard:
    """Shows all runs; call it with them as often as you like.

    Args:
        jobs: Runs at a time.
        console: Where to write.
        line_seconds: Between two lines where there is no terminal.
    """

    def __init__(self, jobs: int = 1, console: Console | None = None, line_seconds: float = 20.0) -> None:
        self.jobs, self.console, self.line_seconds = jobs, console or Console(), line_seconds
        self._clock = StepClock()
        self._bars = Progress(
            TextColumn('{task.description:<16}'), BarColumn(), TextColumn('{task.fields[note]}'), console=self.console
        )
        self._tasks: dict[str, int] = {}
        self._last_line = 0.0

    def __enter__(self) -> 'ProgressBoard':
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, runs: Sequence[Run]) -> None:
        """Look at the runs and show how far they are.

        Args:
            runs: All runs of the experiment.
        """
        self._clock.look(runs)
        left = self._clock.seconds_left(runs, self.jobs)
        text = f'about {_minutes(left)} left' if left is not None else 'starting'
        if self.console.is_terminal:
            for run in runs:
                self._show_bar(run)
            self._update('all', 'all', *_totals(runs), text)
        elif time.monotonic() - self._last_line >= self.line_seconds:
            self._last_line = time.monotonic()
            done = sum(run.result is not None for run in runs)
            under_way = [f'{run.arm} {_note(run)}' for run in runs if run.progress and run.result is None]
            line = '; '.join([f'[{done}/{len(runs)} runs] {text}', *under_way])
            self.console.print(line, highlight=False, markup=False)

    def _show_bar(self, run: Run) -> None:
        state = run.progress
        if state:
            self._update(str(run.folder), f'{run.arm} {run.seed}', state['step'], state['steps'], _note(run))

    def _update(self, key: str, title: str, done: int, total: int, note: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(title, total=total, note=note)
        self._bars.update(self._tasks[key], completed=done, total=total, note=note)


class StepClock:
    """Learns how long a step of each arm takes, from the progress files alone."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}
        self._per_step: dict[str, float] = {}

    def look(self, runs: Sequence[Run], now: float | None = None) -> None:
        """Note where the runs are.

        Args:
            runs: All runs.
            now: Time in s; the clock's when None.
        """
        now = time.monotonic() if now is None else now
        for run in runs:
            result, step = run.result, run.progress.get('step', 0)
            if result and step:
                self._per_step[run.arm] = result['wall_seconds'] / step
            elif step:
                start, first = self._first.setdefault(str(run.folder), (now, step))
                if step > first:
                    self._per_step.setdefault(run.arm, 0.0)
                    self._per_step[run.arm] = (now - start) / (step - first)

    def seconds_left(self, runs: Sequence[Run], jobs: int = 1) -> float | None:
        """Estimate for all that is not done.

        Args:
            runs: All runs.
            jobs: Runs at a time.

        Returns:
            Seconds, or None before anything was measured.
        """
        if not self._per_step:
            return None
        unit = sum(t / _cost(arm) for arm, t in self._per_step.items()) / len(self._per_step)
        lengths = [run.progress['steps'] for run in runs if run.progress]
        usual = max(lengths, default=0)
        total = 0.0
        for run in runs:
            if run.result is None:
                steps = run.progress.get('steps', usual) - run.progress.get('step', 0)
                total += steps * self._per_step.get(run.arm, unit * _cost(run.arm))
        return total / jobs


def _cost(arm: str) -> float:
    return _GUESS.get(arm, _GUESS_DISTILLED)


def _totals(runs: Sequence[Run]) -> tuple[int, int]:
    usual = max((run.progress['steps'] for run in runs if run.progress), default=1)
    done = sum(run.progress.get('step', 0) for run in runs)
    return done, sum(run.progress.get('steps', usual) for run in runs)


def _note(run: Run) -> str:
    state = run.progress
    scores = ', '.join(f'{name} {value:.3f}' for name, value in state.items() if name.startswith('AP'))
    epoch = f'epoch {state["epoch"]}' if 'epoch' in state else 'first epoch'
    return f'{epoch}{": " + scores if scores else ""} ({100 * state.get("step", 0) // max(state.get("steps", 1), 1)} %)'


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02d} s'
