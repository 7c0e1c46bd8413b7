"""Training of what an experiment lacks: runs are processes of their own, several at a time.

A finished run is kept and reused. One that was interrupted goes on from its last whole epoch where that gives the same
numbers to the last bit, else it starts again from its beginning. A run that fails does not end the others.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from mmkd.compat import load_checkpoint_file
from mmkd.testing.experiment import Experiment, arm_record, claim_work_dir, refuse_other_arm, run_config, runs_of
from mmkd.testing.methods import TEACHER, needs_teacher
from mmkd.testing.recorder import PARENT, state_digest
from mmkd.testing.runs import ExperimentError, Run, is_in_use, prepare_folder, read_json
from mmkd.testing.store import attach_store
from mmkd.testing.time_budget import is_stretched, known_budgets, needed_runs, time_budget

PATIENCE = 60.0  # seconds for a worker of an earlier call, whose parent has gone, to end


class FailedRunsError(ExperimentError):
    """Some runs ended without a result; the others are finished.

    Args:
        message: For the person at the keyboard.
        runs: All runs.
    """

    def __init__(self, message: str, runs: list[Run]) -> None:
        super().__init__(message)
        self.runs = runs


def run_experiment(
    experiment: Experiment,
    work_dir: Path,
    *,
    jobs: int = 1,
    store: dict | None = None,
    watch: Callable[[Sequence[Run]], None] = lambda runs: None,
    poll_seconds: float = 1.0,
    worker: Sequence[str] = (sys.executable, '-m', 'mmkd.testing.worker'),
) -> list[Run]:
    """Train what is not trained yet.

    Args:
        experiment: What is compared.
        work_dir: Its folder.
        jobs: Runs at a time; the cores are shared among them.
        store: Results of earlier sessions: what is in them counts as done.
        watch: Called at every look at the processes, for progress.
        poll_seconds: Time between two looks.
        worker: Command that trains the run whose folder is its last argument.

    Returns:
        All runs, each with its result.

    Raises:
        ExperimentError: Where the folder is another experiment's or in use, or runs that share a GPU are to be timed.
        FailedRunsError: Behind all that could be done, where runs failed.
    """
    work_dir = work_dir.resolve()
    _refuse_crowded_clocks(experiment, jobs)
    claim_work_dir(experiment, work_dir)
    with _alone_in(work_dir):
        runs = known_runs(experiment, work_dir, store)
        _refuse_lost_teacher(experiment, runs)
        crew = _Crew(experiment, runs, jobs, worker, known_budgets(work_dir, store))
        failed = crew.work(watch, poll_seconds)
    if failed:
        raise FailedRunsError(_failure_text(runs, failed), runs)
    return runs


def _refuse_crowded_clocks(experiment: Experiment, jobs: int) -> None:
    """On a GPU the budget in time is read off the clock, which runs that share a GPU spoil."""
    devices = visible_devices()
    stretched = [arm for arm in experiment.arms() if is_stretched(experiment, arm)]
    if devices and jobs > len(devices) and stretched:
        raise ExperimentError(
            f'{stretched[0]} needs the time of the other arms, which {jobs} runs at a time on {len(devices)} GPUs '
            f'would spoil: --jobs {len(devices)}, or --no-plain-time.'
        )


def known_runs(experiment: Experiment, work_dir: Path, store: dict | None) -> list[Run]:
    """All runs with what is known of them, here and in the store.

    Args:
        experiment: What is compared.
        work_dir: Its folder.
        store: Results of earlier sessions.

    Returns:
        The runs. A teacher that only the store knows counts as not trained where a run still needs it.

    Raises:
        ExperimentError: Where a finished run is of another arm than its name means now.
    """
    runs = runs_of(experiment, work_dir)
    for run in runs:
        if read_json(run.folder / 'result.json'):
            refuse_other_arm(experiment, run, run.record, str(run.folder))
    if store is not None:
        attach_store(experiment, runs, store)
    teacher = runs[0]
    if any(run.result is None and needs_teacher(experiment.method(run.arm)) for run in runs) and not teacher.checkpoint:
        teacher.stored = None
    return runs


def _refuse_lost_teacher(experiment: Experiment, runs: Sequence[Run]) -> None:
    """A teacher that was trained here must have its weights where a run still learns from it."""
    teacher = runs[0]
    waiting = [run for run in runs if run.result is None and needs_teacher(experiment.method(run.arm))]
    if waiting and teacher.result is not None and not teacher.checkpoint:
        raise ExperimentError(
            f'the weights of the teacher are gone, and {waiting[0].arm}, seed {waiting[0].seed} needs them: put '
            f'{teacher.result.get("checkpoint")} back, or delete {teacher.folder} to train it again.'
        )


class _Crew:
    """The processes of an experiment.

    Args:
        experiment: What is compared.
        runs: All runs, the teacher's first.
        jobs: At a time.
        worker: Command.
        budgets: Of stretched runs of earlier calls.
    """

    def __init__(
        self, experiment: Experiment, runs: list[Run], jobs: int, worker: Sequence[str], budgets: Sequence[dict]
    ) -> None:
        self.experiment, self.runs, self.jobs, self.worker, self.budgets = experiment, runs, jobs, worker, budgets
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.devices = visible_devices()
        self.waiting = [run for run in runs if run.result is None]
        self.active: dict[subprocess.Popen, Run] = {}
        self.slots: dict[subprocess.Popen, int] = {}
        self.failed: dict[str, str] = {}
        self.held_until: dict[str, float] = {}
        self._teacher_digest: str | None = None

    def work(self, watch: Callable[[Sequence[Run]], None], poll_seconds: float) -> dict[str, str]:
        """Train until nothing more can be done; the failures by folder."""
        try:
            while True:
                free = self.jobs - len(self.active)  # 0 at most looks, where it must cost nothing
                for run in list(islice(filter(self._can_start, self.waiting), free)):
                    self.waiting.remove(run)
                    self._start(run)
                watch(self.runs)
                # in this order: a folder may become free between the two questions
                if not self.active and not any(self._is_held(run) or self._can_start(run) for run in self.waiting):
                    break
                time.sleep(poll_seconds)
                for process in [process for process in self.active if process.poll() is not None]:
                    del self.slots[process]
                    self._end(self.active.pop(process), process.returncode)
        finally:
            for process in self.active:
                process.terminate()
                process.wait()
        return self.failed

    def _can_start(self, run: Run) -> bool:
        """Whether all that a run builds on is finished, and its folder is free."""
        if is_stretched(self.experiment, run.arm):
            ready = all(one.result for one in needed_runs(self.experiment, run, self.runs, self.budgets))
        else:
            ready = not needs_teacher(self.experiment.method(run.arm)) or self.runs[0].result is not None
        return ready and str(run.folder) not in self.failed and not self._is_held(run)

    def _is_held(self, run: Run) -> bool:
        """Whether a worker of an earlier call is in the folder: where its parent was killed, it ends at its next step.

        After `PATIENCE` the run counts as failed.
        """
        name = str(run.folder)
        if name in self.failed or not is_in_use(run):
            return False
        if time.monotonic() < self.held_until.setdefault(name, time.monotonic() + PATIENCE):
            return True
        self.failed[name] = f'a process of an earlier call is still training in {name}; wait for it, or end it.'
        return False

    def _start(self, run: Run) -> None:
        budget = None
        if is_stretched(self.experiment, run.arm):
            budget = time_budget(self.experiment, run, self.runs, self.budgets)
        epochs = budget['epochs'] if budget else None
        digest = self._teacher_sha256() if needs_teacher(self.experiment.method(run.arm)) else None
        record = arm_record(self.experiment, run, teacher_sha256=digest, budget=budget)
        text = run_config(self.experiment, run, self.runs[0], epochs).pretty_text
        prepare_folder(run, text, record, self.experiment.data.metrics)
        environment = dict(os.environ, OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', str(self.threads)))
        environment[PARENT] = str(os.getpid())
        slot = min(set(range(self.jobs)) - set(self.slots.values()))
        if self.devices:
            environment['CUDA_VISIBLE_DEVICES'] = self.devices[slot % len(self.devices)]
        with (run.folder / 'train.log').open('a') as log:
            process = subprocess.Popen(
                [*self.worker, str(run.folder)], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self.active[process] = run
        self.slots[process] = slot

    def _end(self, run: Run, code: int) -> None:
        if code != 0 or run.result is None:
            tail = (run.folder / 'train.log').read_text(errors='replace').strip().splitlines()[-8:]
            shown = '\n  '.join(tail)
            text = f'{run.arm}, seed {run.seed}, ended with exit code {code}. Whole log: {run.folder / "train.log"}'
            self.failed[str(run.folder)] = f'{text}; its end:\n  {shown}'

    def _teacher_sha256(self) -> str | None:
        if self._teacher_digest is None:
            self._teacher_digest = weights_digest(self.runs[0])
        return self._teacher_digest


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; nothing without a GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return named.split(',')[:count] if named else [str(number) for number in range(count)]


def weights_digest(run: Run) -> str | None:
    """Digest of a finished run's weights; from the checkpoint where the run was finished by an older mmkd.

    Args:
        run: A finished run.

    Returns:
        Hexadecimal digits; None where neither the run nor a checkpoint says.
    """
    known = (run.result or {}).get('weights_sha256')
    if known is None and run.checkpoint:
        return state_digest(load_checkpoint_file(run.checkpoint)['state_dict'])
    return known


@contextlib.contextmanager
def _alone_in(work_dir: Path) -> Iterator[None]:
    """Refuse to work where another process does; a process that has died holds nothing."""
    with (work_dir / 'experiment.json').open() as stamp:
        try:
            fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExperimentError(f'another process is working in {work_dir}; wait for it, or end it.') from None
        yield


def _failure_text(runs: Sequence[Run], failed: dict[str, str]) -> str:
    missing = [run for run in runs if run.result is None]
    blocked = [f'{run.arm}, seed {run.seed}' for run in missing if str(run.folder) not in failed]
    text = (
        f'{len(failed)} of {len(runs)} runs failed. Finished runs are kept: the same command tries the others again.\n'
    )
    text += '\n'.join(failed.values())
    if blocked:
        text += f'\nNot started, since what they build on is missing: {"; ".join(blocked)}.'
    return text + (f'\n(The {TEACHER} is one of the failed runs.)' if runs[0].result is None else '')
