"""Arms x seeds: a fair comparison of detectors that differ in nothing but the method.

The teacher is trained once. Every other arm is trained once for each seed, and within a seed all arms start from the
same student and see the same batches; both are recorded and checked, not assumed. Runs are processes of their own.
A finished run is kept and reused; one that was interrupted starts again from its beginning, since a run that is
resumed halfway would see other random numbers than its partners.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config

from mmkd.testing.arms import Arm, parse_arm
from mmkd.testing.detection_data import DetectionData
from mmkd.testing.methods import PLAIN, TEACHER, distilled_model, needs_teacher
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.worker import write_json


class ExperimentError(RuntimeError):
    """An experiment that cannot go on; the message is for the person at the keyboard."""


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Args:
        data: Data set.
        student: Model config of the student.
        teacher: Model config of the teacher.
        methods: Arms beside the teacher, such as `('plain', 'ssim')`; see `mmkd.testing.arms`.
        seeds: Of every arm but the teacher, whose seed is the first of them.
        schedule: Of every arm, the teacher included unless `teacher_schedule` is given.
        teacher_schedule: Of the teacher.
    """

    data: DetectionData
    student: dict
    teacher: dict
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: Schedule
    teacher_schedule: Schedule | None = None

    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return {arm.name: arm for arm in map(parse_arm, self.methods)}

    def identity(self) -> dict:
        """What must not change between two calls with the same folder; methods and seeds may be added."""
        annotation = hashlib.sha256()
        for split in (self.data.train, self.data.val):
            with contextlib.suppress(OSError):
                annotation.update(Path(split['ann_file']).read_bytes())
        content = dict(
            data=self.data.name,
            annotations=annotation.hexdigest(),
            student=self.student,
            teacher=self.teacher,
            schedule=asdict(self.schedule),
            teacher_schedule=asdict(self.teacher_schedule or self.schedule),
        )
        return json.loads(json.dumps(content))


@dataclass
class Run:
    """One training of one arm.

    Args:
        arm: Its name.
        seed: Its seed.
        folder: Where it lives.
    """

    arm: str
    seed: int
    folder: Path

    @property
    def result(self) -> dict | None:
        """What the finished run found; None before."""
        return _read_json(self.folder / 'result.json')

    @property
    def progress(self) -> dict:
        """State of a run under way; empty before its first step."""
        return _read_json(self.folder / 'progress.json') or {}


def runs_of(experiment: Experiment, work_dir: Path) -> list[Run]:
    """All runs, in the order in which they are started: seed by seed, so that early stops leave whole pairs."""
    runs = [Run(TEACHER, experiment.seeds[0], work_dir / TEACHER)]
    for seed in experiment.seeds:
        runs += [Run(arm, seed, work_dir / arm / f'seed{seed}') for arm in experiment.arms()]
    return runs


def claim_work_dir(experiment: Experiment, work_dir: Path) -> None:
    """Make the folder this experiment's, or refuse.

    Args:
        experiment: The one to be run.
        work_dir: New, empty, or left by an earlier call for the same experiment.

    Raises:
        ExperimentError: Where it holds something else; nothing is changed then.
    """
    stamp, identity = work_dir / 'experiment.json', experiment.identity()
    if stamp.exists():
        found = _read_json(stamp) or {}
        differing = [key for key in identity if found.get(key) != identity[key]]
        if differing:
            raise ExperimentError(
                f'{work_dir} holds another experiment: it differs in {", ".join(differing)}. '
                'Nothing was changed; choose another --work-dir, or delete that folder.'
            )
    elif work_dir.exists() and any(path.name != 'data' for path in work_dir.iterdir()):
        raise ExperimentError(f'{work_dir} is not empty and holds no experiment; choose another --work-dir.')
    else:
        work_dir.mkdir(parents=True, exist_ok=True)
        write_json(stamp, identity)


def run_experiment(
    experiment: Experiment,
    work_dir: Path,
    *,
    jobs: int = 1,
    watch: Callable[[Sequence[Run]], None] = lambda runs: None,
    poll_seconds: float = 0.5,
    worker: Sequence[str] = (sys.executable, '-m', 'mmkd.testing.worker'),
) -> list[Run]:
    """Train what is not trained yet.

    Args:
        experiment: What is compared.
        work_dir: Its folder.
        jobs: Runs at a time; the cores are shared among them.
        watch: Called at every look at the processes, for progress.
        poll_seconds: Time between two looks.
        worker: Command that trains the run whose folder is its last argument.

    Returns:
        All runs, each with its result.

    Raises:
        ExperimentError: Where the folder is another experiment's or in use, or a run failed; finished runs are kept.
    """
    work_dir = work_dir.resolve()
    claim_work_dir(experiment, work_dir)
    with _alone_in(work_dir):
        return _run_all(experiment, runs_of(experiment, work_dir), jobs, watch, poll_seconds, worker)


def _run_all(
    experiment: Experiment,
    runs: list[Run],
    jobs: int,
    watch: Callable[[Sequence[Run]], None],
    poll_seconds: float,
    worker: Sequence[str],
) -> list[Run]:
    for run in runs:
        _refuse_other_arm(experiment, run)
    waiting = [run for run in runs if run.result is None]
    active: dict[subprocess.Popen, Run] = {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or active:
            for run in [run for run in waiting if _can_start(experiment, run, runs)][: jobs - len(active)]:
                waiting.remove(run)
                _prepare(experiment, run, runs[0])
                active[_start(run, worker, threads)] = run
            watch(runs)
            time.sleep(poll_seconds)
            for process in [process for process in active if process.poll() is not None]:
                _check(active.pop(process), process.returncode)
    finally:
        for process in active:
            process.terminate()
            process.wait()
    watch(runs)
    return runs


def unfair_runs(runs: Sequence[Run]) -> list[str]:
    """Runs that did not start from the same student, or were not fed the same batches, as plain with their seed."""
    plain = {run.seed: run.result for run in runs if run.arm == PLAIN and run.result}
    complaints = []
    for run in runs:
        partner = plain.get(run.seed)
        if run.arm in (PLAIN, TEACHER) or not run.result or not partner:
            continue
        for key, what in (('initial_sha256', 'initial student'), ('batches_sha256', 'batches')):
            if run.result[key] != partner[key]:
                complaints.append(f'{run.arm}, seed {run.seed}: other {what} than plain')
    return complaints


def run_config(experiment: Experiment, run: Run, teacher: Run) -> Config:
    """The config that a run is trained with.

    Args:
        experiment: What is compared.
        run: One of its runs.
        teacher: The finished run of the teacher (not looked at for the teacher itself and for plain).

    Returns:
        A whole MMEngine config.
    """
    schedule, model = experiment.schedule, experiment.student
    if run.arm == TEACHER:
        schedule, model = experiment.teacher_schedule or schedule, experiment.teacher
    elif run.arm != PLAIN:
        arm = experiment.arms()[run.arm]
        found = None
        if needs_teacher(arm.method):
            found = dict(teacher=str(teacher.folder / 'config.py'), teacher_ckpt=(teacher.result or {})['checkpoint'])
        model = arm.apply(distilled_model(experiment.student, arm.method, found))
    return training_config(model, experiment.data, schedule, run.seed)


def _can_start(experiment: Experiment, run: Run, runs: Sequence[Run]) -> bool:
    return run.arm == TEACHER or runs[0].result is not None or not needs_teacher(experiment.arms()[run.arm].method)


@contextlib.contextmanager
def _alone_in(work_dir: Path) -> Iterator[None]:
    """Refuse to work where another process does; a process that has died holds nothing."""
    with (work_dir / 'experiment.json').open() as stamp:
        try:
            fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExperimentError(f'another process is working in {work_dir}; wait for it, or end it.') from None
        yield


def _prepare(experiment: Experiment, run: Run, teacher: Run) -> None:
    if run.folder.exists():  # an interrupted run of this very experiment: claim_work_dir has seen to that
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True)
    run_config(experiment, run, teacher).dump(run.folder / 'config.py')
    write_json(run.folder / 'metrics.json', experiment.data.metrics)
    write_json(run.folder / 'arm.json', _arm_record(experiment, run))


def _arm_record(experiment: Experiment, run: Run) -> dict:
    arm = experiment.arms().get(run.arm, Arm(run.arm, run.arm))
    return json.loads(json.dumps(asdict(arm)))


def _refuse_other_arm(experiment: Experiment, run: Run) -> None:
    """A finished run must be of the arm that its name means now."""
    found = _read_json(run.folder / 'arm.json')
    if run.result and found and found != _arm_record(experiment, run):
        raise ExperimentError(
            f'{run.folder} holds {run.arm!r} with the method {found["method"]} and the options {found["options"]}; '
            'give the new arm another name.'
        )


def _start(run: Run, worker: Sequence[str], threads: int) -> subprocess.Popen:
    environment = dict(os.environ, OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', str(threads)))
    with (run.folder / 'train.log').open('w') as log:
        return subprocess.Popen([*worker, str(run.folder)], stdout=log, stderr=subprocess.STDOUT, env=environment)


def _check(run: Run, code: int) -> None:
    if code == 0 and run.result is not None:
        return
    tail = (run.folder / 'train.log').read_text(errors='replace').strip().splitlines()[-8:]
    shown = '\n  '.join(tail)
    raise ExperimentError(
        f'{run.arm}, seed {run.seed}, ended with exit code {code}. Finished runs are kept: the same command goes on '
        f'from here. Whole log: {run.folder / "train.log"}; its end:\n  {shown}'
    )


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
