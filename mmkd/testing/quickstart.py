"""Teacher, plain student and distilled student, from nothing to a table and pictures, in one command.

    python -m mmkd.testing.quickstart                                       # toy data, about 7 minutes on two CPU cores
    python -m mmkd.testing.quickstart --data PATH --format coco --scale 320 240 --seeds 0 1 2 --methods plain ssim

Calling it again with the same folder goes on where it stopped: finished runs are kept.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console

from mmkd.testing.arms import parse_arm
from mmkd.testing.detection_data import DetectionData, detection_data
from mmkd.testing.experiment import Experiment, ExperimentError, Run, run_experiment
from mmkd.testing.hold_back import hold_back
from mmkd.testing.measure import load_student, model_cost, validation_samples
from mmkd.testing.methods import PLAIN, distilled_model
from mmkd.testing.pictures import draw_pictures
from mmkd.testing.progress import ProgressBoard
from mmkd.testing.recipe import Schedule, detector_from_config
from mmkd.testing.report import collect_results, print_table
from mmkd.testing.toy_data import MIXTURES, make_toy_data
from mmkd.testing.toy_detectors import SIZES
from mmkd.testing.worker import write_json

DATA_SCALE = (320, 240)


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        prog='quickstart', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group('data')
    data.add_argument('--data', type=Path, help='folder of your data; without it a toy set is made')
    data.add_argument(
        '--toy',
        choices=sorted(MIXTURES),
        help='toy set to make: mixed (default; 3 to 10 shapes in 192x160 px), or small (12 to 28 mostly small shapes '
        'in 320x256 px, 4 times the time; AP by object size)',
    )
    data.add_argument('--format', choices=('coco', 'kitti'), default='coco', help='layout of --data (default: coco)')
    data.add_argument('--splits', nargs=2, default=['train', 'val'], metavar='NAME', help='of --data (train val)')
    data.add_argument(
        '--hold-back',
        type=float,
        default=0.0,
        metavar='SHARE',
        help='score on this share of the training images, taken out of training, and leave the second split alone: '
        'for choosing hyper-parameters',
    )
    data.add_argument(
        '--scale', type=int, nargs=2, metavar=('WIDTH', 'HEIGHT'), help='size images are resized into, px'
    )
    arms = parser.add_argument_group('what is compared')
    arms.add_argument(
        '--methods',
        nargs='+',
        default=[PLAIN, 'ssim'],
        metavar='ARM',
        help='arms beside the teacher: METHOD, or NAME=METHOD,KEY=VALUE,... with keys below model. (plain ssim)',
    )
    arms.add_argument('--seeds', type=int, nargs='+', default=[0], help='each arm is trained once for each (0)')
    sizes = 'tiny, small or large (RetinaNets of 0.2, 1.1 and 12 M parameters), or a config'
    arms.add_argument('--student', default='tiny', help=f'{sizes}, whose model is the student (tiny)')
    arms.add_argument('--teacher', default='large', help='the same for the teacher (large)')
    training = parser.add_argument_group('training')
    training.add_argument('--epochs', type=int, default=12, help='of every arm (12)')
    training.add_argument('--teacher-epochs', type=int, help='of the teacher (as --epochs)')
    training.add_argument('--score-every', type=int, default=1, help='epochs between two scorings of a run (1)')
    training.add_argument('--batch', type=int, default=4, help='images of one step (4)')
    training.add_argument('--lr', type=float, default=2e-3, help='peak learning rate of AdamW; the teacher gets half')
    training.add_argument('--workers', type=int, default=0, help='loading processes of a run (0: the training process)')
    training.add_argument('--jobs', type=int, default=min(os.cpu_count() or 1, 2), help='runs at a time')
    parser.add_argument(
        '--work-dir', type=Path, help='where everything goes (work_dirs/quickstart, with _DATA for --data)'
    )
    options = parser.parse_args(argv)
    if options.work_dir is None:
        name = options.data.name if options.data else options.toy
        options.work_dir = Path('work_dirs') / '_'.join(
            ['quickstart', *([name] if name not in (None, 'mixed') else [])]
        )
    if options.data and options.toy:
        parser.error('--toy makes data, --data names yours: give one of them')
    options.teacher_epochs = options.teacher_epochs or options.epochs
    counts = options.epochs, options.teacher_epochs, options.score_every, options.batch, options.jobs
    if min(*counts, *(options.scale or [32])) < 1:
        parser.error('--epochs, --teacher-epochs, --score-every, --batch, --jobs and --scale must be positive')
    names = [text.partition('=')[0] for text in options.methods]
    if len(set(options.seeds)) < len(options.seeds) or len(set(names)) < len(names):
        parser.error('--seeds and --methods must not name anything twice')
    if not 0 <= options.hold_back < 1:
        parser.error(f'--hold-back must be in [0, 1), got {options.hold_back}')
    return options


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
    student = _model(options.student, classes)
    for arm in map(parse_arm, options.methods):
        if arm.method != PLAIN:  # a name or option that is wrong is refused before anything is trained
            arm.apply(distilled_model(student, arm.method, dict(teacher='', teacher_ckpt='')))
    schedule = Schedule(
        epochs=options.epochs,
        scale=scale,
        batch=options.batch,
        lr=options.lr,
        workers=options.workers,
        score_every=options.score_every,
    )
    return Experiment(
        data=data,
        student=student,
        teacher=_model(options.teacher, classes),
        methods=tuple(options.methods),
        seeds=tuple(options.seeds),
        schedule=schedule,
        teacher_schedule=replace(schedule, lr=options.lr / 2, epochs=options.teacher_epochs),
    )


def toy_data(folder: Path, objects: str) -> DetectionData:
    """Make a toy set and describe it.

    Args:
        folder: Where it goes.
        objects: Name of a mixture; `small` is scored by object size too.

    Returns:
        Its description.
    """
    found = detection_data(make_toy_data(folder, objects=objects), by_size=objects == 'small')
    return replace(found, name='toy shapes' if objects == 'mixed' else f'toy shapes, {objects}')


def quickstart(options: argparse.Namespace, console: Console) -> dict:
    """Run everything.

    Args:
        options: Of the command line.
        console: Where to write.

    Returns:
        The results, as in `results.json`.
    """
    work_dir = options.work_dir.resolve()
    if options.data is None:
        console.print('[bold]1/4[/] toy data: shapes on varied backgrounds')
        data = toy_data(work_dir / 'data', options.toy or 'mixed')
    else:
        console.print(f'[bold]1/4[/] data: {options.data}')
        data = detection_data(options.data, options.format, tuple(options.splits))
    if options.hold_back:
        data = hold_back(data, options.hold_back, work_dir / 'data')
    experiment = build_experiment(options, data)
    runs_wanted = 1 + len(options.methods) * len(options.seeds)
    console.print(f'[bold]2/4[/] training {runs_wanted} runs, {options.jobs} at a time; logs in {work_dir}')
    with ProgressBoard(options.jobs, console) as board:
        runs = run_experiment(experiment, work_dir, jobs=options.jobs, watch=board)
    results = finish(experiment, runs, work_dir, console)
    print_table(results, console)
    console.print(f'Pictures, results.json, configs, checkpoints: {work_dir}')
    return results


def finish(experiment: Experiment, runs: Sequence[Run], work_dir: Path, console: Console) -> dict:
    """Measure, collect, draw; nothing is done twice for the same runs.

    Args:
        experiment: What was compared.
        runs: Its finished runs.
        work_dir: Its folder.
        console: Where to write.

    Returns:
        The results.
    """
    stamp = [[run.arm, run.seed, run.result['finished']] for run in runs if run.result]
    file = work_dir / 'results.json'
    if file.exists():
        results = json.loads(file.read_text())
        if results.get('stamp') == stamp:
            console.print('[bold]3/4[/] and [bold]4/4[/] are up to date')
            return results
    console.print('[bold]3/4[/] measuring parameters, GFLOPs and time an image')
    command = 'python -m mmkd.testing.quickstart ' + shlex.join(sys.argv[1:])
    with contextlib.redirect_stdout(io.StringIO()):  # loaders print what they load
        results = collect_results(experiment, runs, _costs(runs), command=command.strip())
    console.print('[bold]4/4[/] pictures')
    with contextlib.redirect_stdout(io.StringIO()):
        results['pictures'] = [path.name for path in draw_pictures(experiment, runs, work_dir / 'pictures')]
    results['stamp'] = stamp
    write_json(file, results)
    return results


def _costs(runs: Sequence[Run]) -> dict[str, dict]:
    costs: dict[str, dict] = {}
    samples = validation_samples(runs[0].folder / 'config.py', 12)
    for run in runs:
        if run.result and run.arm not in costs:
            model = load_student(run.folder / 'config.py', run.result['checkpoint'])
            costs[run.arm] = model_cost(model, samples)
    return costs


def _model(choice: str, classes: int) -> dict:
    return SIZES[choice](classes).to_dict() if choice in SIZES else detector_from_config(choice, classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 where everything was done, 1 with a message of a few lines otherwise.
    """
    options = parse_options(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ending this process ends its runs
    MMLogger.get_instance('quickstart', log_level='ERROR')  # the steps speak for themselves
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        quickstart(options, console)
    except (ExperimentError, OSError, ValueError) as error:
        console.print(f'quickstart: {error}', style='bold red', markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print('Stopped. The same command goes on from the runs that are finished.')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
