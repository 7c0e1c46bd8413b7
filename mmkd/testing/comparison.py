"""What the quick start and `tools/compare_methods.py` do: data, checks, training, measuring, results."""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mmkd.testing.checks import quiet, unmet_wishes
from mmkd.testing.detection_data import DetectionData, detection_data
from mmkd.testing.experiment import Experiment, refuse_other_work_dir
from mmkd.testing.final_score import FinalSplit, final_scores
from mmkd.testing.hold_back import hold_back
from mmkd.testing.measure import load_student, model_cost, validation_samples
from mmkd.testing.methods import check_method, is_plain
from mmkd.testing.options import DATA_SCALE
from mmkd.testing.pictures import draw_pictures
from mmkd.testing.progress import ProgressBoard
from mmkd.testing.recipe import Schedule, chosen_detector
from mmkd.testing.results import FinalScores, collect_results
from mmkd.testing.runs import ExperimentError, Run, write_json
from mmkd.testing.store import commands, read_store, run_key, write_store
from mmkd.testing.time_budget import is_stretched, reference_arms
from mmkd.testing.toy_data import MIXTURES, STAMP, copy_toy_data, make_toy_data, refuse_other_folder
from mmkd.testing.training import FailedRunsError, known_runs, run_experiment


@dataclass(frozen=True)
class Place:
    """Where an experiment's files are.

    Args:
        work_dir: Runs, results, pictures.
        store: Committed results; None without.
        command: That was typed.
        final: Split to score on once all runs are finished; None without.
    """

    work_dir: Path
    store: Path | None = None
    command: str = ''
    final: FinalSplit | None = None


def checked_data(options: argparse.Namespace, check: Callable[[DetectionData], object]) -> DetectionData:
    """`load_data`, which writes into the work directory only when nothing is wrong with the call.

    Args:
        options: Of the command line.
        check: Is given the data, and raises where something is wrong with the experiment or its place.

    Returns:
        The description of the data set. Raised is what `load_data`, `refuse_other_folder` and `check` raise.
    """
    work_dir, toy = options.work_dir.resolve(), options.data is None
    folder = work_dir / 'data'
    if (folder / STAMP).exists() if toy else not options.hold_back:
        data = load_data(options)
        check(data)
        return data
    if toy or not any(folder.glob('held_back.*')):
        refuse_other_folder(folder)
    with tempfile.TemporaryDirectory() as draft:
        if toy:  # wrong options and a folder of something else are said before the whole set is drawn
            few = build_experiment(options, toy_data(Path(draft, 'few'), options.toy or 'mixed', few=True))
            if not getattr(options, 'families', None) and not (work_dir / 'experiment.json').exists():
                refuse_other_work_dir(few, work_dir)
        with quiet():
            check(load_data(options, Path(draft, 'data')))
        if toy:
            copy_toy_data(Path(draft, 'data'), folder)
    return load_data(options)


def load_data(options: argparse.Namespace, folder: Path | None = None) -> DetectionData:
    """The data set that the options ask for.

    Args:
        options: Of the command line.
        folder: Where a toy set and annotation files of `--hold-back` go; None for `data` of the work directory.

    Returns:
        Its description.

    Raises:
        FileNotFoundError: Where files are missing.
        ValueError: Where they do not fit.
    """
    folder = folder or options.work_dir.resolve() / 'data'
    if options.data is None:
        data = toy_data(folder, options.toy or 'mixed')
    else:
        data = detection_data(options.data, options.format, tuple(options.splits), by_size=options.by_size)
    return hold_back(data, options.hold_back, folder) if options.hold_back else data


def toy_data(folder: Path, objects: str, *, few: bool = False) -> DetectionData:
    """Make a toy set and describe it.

    Args:
        folder: Where it goes.
        objects: Name of a mixture; `small` is scored by object size too.
        few: Two images, for what needs the classes alone.

    Returns:
        Its description.
    """
    counts = dict(train=1, val=1) if few else {}
    found = detection_data(make_toy_data(folder, objects=objects, **counts), by_size=objects == 'small')
    return replace(found, name='toy shapes' if objects == 'mixed' else f'toy shapes, {objects}')


def build_experiment(options: argparse.Namespace, data: DetectionData) -> Experiment:
    """The experiment that the options ask for.

    Args:
        options: Of the command line.
        data: Data set.

    Returns:
        The experiment; nothing is trained yet.

    Raises:
        ValueError: For an unknown method or a config without a model.
    """
    classes = len(data.classes)
    scale = tuple(options.scale or (DATA_SCALE if options.data else MIXTURES[options.toy or 'mixed'].size))
    schedule = Schedule(
        epochs=options.epochs,
        scale=scale,
        batch=options.batch,
        lr=options.lr,
        workers=options.workers,
        score_every=options.score_every,
    )
    experiment = Experiment(
        data=data,
        student=chosen_detector(options.student, classes),
        teacher=chosen_detector(options.teacher, classes),
        methods=tuple(options.methods),
        seeds=tuple(options.seeds),
        schedule=schedule,
        teacher_seed=options.teacher_seed,
        teacher_schedule=replace(schedule, lr=options.teacher_lr, epochs=options.teacher_epochs),
    )
    for arm in experiment.arms().values():
        check_method(arm.method)
        if is_stretched(experiment, arm.name):
            reference_arms(experiment, arm.name)
        elif is_plain(arm.method) and arm.model_options:
            raise ValueError(f'{arm.name}: {arm.method} has no option but lr, got {dict(arm.options)}')
    return experiment


def compare(experiment: Experiment, place: Place, console: Console, *, jobs: int = 1, train: bool = True) -> dict:
    """Train what is missing, measure, and write everything down. Behind `mmkd.testing.checks.check_experiment`.

    Args:
        experiment: What is compared.
        place: Its files.
        console: Where to write.
        jobs: Runs at a time.
        train: Otherwise only what is finished is measured.

    Returns:
        The results, as in `results.json`.

    Raises:
        ExperimentError: Where nothing can be done.
        FailedRunsError: Where some runs failed; the results of the others are written before.
    """
    store = read_store(place.store, experiment) if place.store else None
    if not train:  # the results are not of this command
        place = replace(place, command='')
    runs, failure = known_runs(experiment, place.work_dir, store), None
    missing = [run for run in runs if run.result is None]
    for text in unmet_wishes(experiment, runs):
        console.print(text, highlight=False)
    if train and missing:
        done = f', {len(runs) - len(missing)} are finished' if len(missing) < len(runs) else ''
        text = f'training {len(missing)} runs{done}, {jobs} at a time; logs in {place.work_dir}'
        console.print(text, highlight=False)
    if train:
        with ProgressBoard(jobs, console) as board:
            watch = _Saver(experiment, place, board) if place.store else board
            try:
                runs = run_experiment(experiment, place.work_dir, jobs=jobs, store=store, watch=watch)
            except FailedRunsError as error:
                failure, runs = error, error.runs
    if not any(run.result for run in runs):
        raise failure or ExperimentError(f'{place.work_dir}: no run is finished, so that there is nothing to report')
    if failure:  # a final split is for the end
        place = replace(place, final=None)
    results = finish(experiment, runs, place, console)
    if failure:
        failure.results = results
        raise failure
    return results


class _Saver:
    """Writes the store whenever a run has finished, and passes on to the progress.

    Args:
        experiment: What is compared.
        place: Its files.
        board: Called at every look.
    """

    def __init__(self, experiment: Experiment, place: Place, board: Callable[[Sequence[Run]], None]) -> None:
        self.experiment, self.place, self.board = experiment, place, board
        self.saved: int | None = None

    def __call__(self, runs: Sequence[Run]) -> None:
        done = sum(run.result is not None for run in runs)
        if self.saved is not None and done > self.saved:
            store = read_store(self.place.store, self.experiment)
            write_store(
                self.place.store, collect_results(self.experiment, runs, {}, command=self.place.command, store=store)
            )
        self.saved = done
        self.board(runs)


def finish(experiment: Experiment, runs: Sequence[Run], place: Place, console: Console) -> dict:
    """Measure, collect, draw; nothing is done twice for the same runs.

    Args:
        experiment: What was compared.
        runs: Its runs; the finished ones count.
        place: Its files.
        console: Where to write.

    Returns:
        The results.
    """
    store = read_store(place.store, experiment) if place.store else None
    stamp = [[run.arm, run.seed, run.result['finished']] for run in runs if run.result]
    known = set(map(run_key, store['runs'])) if store else set()  # also a teacher without weights
    lacking = [run for run in runs if run.result is None and run_key(vars(run)) not in known]
    missing = [f'{run.arm}, seed {run.seed}' for run in lacking]
    file = place.work_dir / 'results.json'
    if file.exists():
        results = json.loads(file.read_text())
        same = results.get('stamp') == stamp and results.get('missing', []) == missing
        scored = place.final is None or results['setting'].get('final') == place.final.described()
        if same and scored and 'identity' in results and (store is None or store['runs'] == results['runs']):
            console.print('measurements and pictures are up to date')
            if place.store and store is None:
                write_store(place.store, results)
            return results
    console.print('measuring parameters, GFLOPs and time an image')
    with quiet():  # loaders print what they load
        final = FinalScores(final_scores(runs, place.final), place.final.described()) if place.final else None
        costs = _costs(experiment, runs)
        store = read_store(place.store, experiment) if place.store else None  # others may have added to it
        results = collect_results(experiment, runs, costs, command=place.command, store=store, final=final)
    results['missing'] = missing
    if store is None and file.exists():
        typed = [*commands(json.loads(file.read_text())), *commands(results)]
        results['setting']['commands'] = list(dict.fromkeys(typed))
    if place.store:
        write_store(place.store, results)
    console.print('pictures')
    with quiet():
        drawn = draw_pictures(results, runs, place.work_dir / 'pictures', dataset=experiment.data.val)
    results['pictures'] = [path.name for path in drawn]
    results['stamp'] = stamp
    place.work_dir.mkdir(parents=True, exist_ok=True)
    write_json(file, results)
    return results


def command_line(program: str) -> str:
    """The command that this process was started with; its folder, which belongs to this machine, as `WORK_DIR`."""
    words = sys.argv[1:]
    for place, word in enumerate(words):
        if word.startswith('--work-dir='):
            words[place] = '--work-dir=WORK_DIR'
        elif word == '--work-dir' and place + 1 < len(words):
            words[place + 1] = 'WORK_DIR'
    return f'{program} {shlex.join(words)}'.strip()


def _costs(experiment: Experiment, runs: Sequence[Run]) -> dict[str, dict]:
    costs: dict[str, dict] = {}
    here = [run for run in runs if run.checkpoint]
    samples = validation_samples(here[0].folder / 'config.py', 12, experiment.data.val) if here else []
    for run in here:
        if run.arm not in costs:
            model = load_student(run.folder / 'config.py', run.checkpoint)
            costs[run.arm] = model_cost(model, samples)
    return costs
