"""Options that the quick start and the comparison share: data, arms, training, place."""

import argparse
import math
import os
from pathlib import Path

from mmkd.testing.methods import PLAIN
from mmkd.testing.recipe import Schedule
from mmkd.testing.toy_data import MIXTURES
from mmkd.testing.training import visible_devices

DATA_SCALE = (320, 240)
_MODELS = 'tiny, small or large (RetinaNets of 0.2, 1.1 and 12 M parameters), FAMILY-tiny and so on, or a config'


def add_options(
    parser: argparse.ArgumentParser, *, methods: list[str], seeds: list[int], epochs: int, teacher: str
) -> None:
    """Add the shared options.

    Args:
        parser: To add them to.
        methods: Default arms.
        seeds: Default seeds.
        epochs: Default length.
        teacher: Default teacher.
    """
    _add_data_options(parser.add_argument_group('data'))
    arms = parser.add_argument_group('what is compared')
    arms.add_argument(
        '--methods',
        nargs='+',
        default=methods,
        metavar='ARM',
        help='arms beside the teacher: METHOD, or NAME=METHOD,KEY=VALUE,... with keys below model. METHOD is plain, '
        'plain-time (plain for as long as distillation takes), ikd, mkd or frskd (the file that suits the heads), or a '
        f'stem of configs/_base_/methods ({" ".join(methods)}). Among the options, lr=RATE is a learning rate of its '
        'own, also of plain',
    )
    shown = ' '.join(str(seed) for seed in seeds)
    arms.add_argument('--seeds', type=int, nargs='+', default=seeds, help=f'each arm is trained for each ({shown})')
    arms.add_argument('--student', default='tiny', help=f'{_MODELS}, whose model is the student (tiny)')
    arms.add_argument('--teacher', default=teacher, help=f'the same for the teacher ({teacher})')
    training = parser.add_argument_group('training')
    training.add_argument('--epochs', type=int, default=epochs, help=f'of every arm ({epochs})')
    training.add_argument('--teacher-epochs', type=int, help='of the teacher (as --epochs)')
    training.add_argument('--teacher-seed', type=int, help='of the teacher, which all seeds share (0)')
    training.add_argument('--score-every', type=int, default=1, help='epochs between two scorings of a run (1)')
    training.add_argument('--batch', type=int, default=4, help='images of one step (4)')
    training.add_argument('--lr', type=float, default=Schedule.lr, help='peak learning rate of AdamW (%(default)s)')
    training.add_argument('--teacher-lr', type=float, help='of the teacher (half of --lr)')
    training.add_argument('--workers', type=int, default=0, help='loading processes of a run (0: the training process)')
    training.add_argument('--jobs', type=int, default=_jobs(), help='runs at a time (one a GPU; without, at most 2)')
    parser.add_argument(
        '--work-dir', type=Path, help=f'where everything goes (work_dirs/{parser.prog}, with _DATA for --data)'
    )


def _jobs() -> int:
    return len(visible_devices()) or min(os.cpu_count() or 1, 2)


def _add_data_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument('--data', type=Path, help='folder of your data; without it a toy set is made')
    data.add_argument(
        '--toy',
        choices=sorted(MIXTURES),
        help='toy set to make: mixed (default; 1 to 10 shapes in 192x160 px), or small (7 to 24 mostly small shapes '
        'in 320x256 px, 4 times the time; AP by object size)',
    )
    data.add_argument('--format', choices=('coco', 'kitti'), default='coco', help='layout of --data (default: coco)')
    data.add_argument('--splits', nargs=2, default=['train', 'val'], metavar='NAME', help='of --data (train val)')
    data.add_argument('--by-size', action='store_true', help='AP by object size too (COCO layout)')
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


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what follows from other options, and refuse what cannot be meant.

    Args:
        parser: Whose options they are.
        options: As parsed; changed in place.

    Returns:
        The same.
    """
    if options.work_dir is None:
        name = options.data.name if options.data else options.toy
        options.work_dir = Path('work_dirs') / '_'.join([parser.prog, *([name] if name not in (None, 'mixed') else [])])
    if options.data and options.toy:
        parser.error('--toy makes data, --data names yours: give one of them')
    for name in ('by_size', 'format', 'splits'):
        if options.data is None and getattr(options, name) != parser.get_default(name):
            parser.error(f'--{name.replace("_", "-")} is of --data, which is not given; a toy set has its own')
    options.teacher_epochs = options.teacher_epochs or options.epochs
    options.teacher_lr = options.lr / 2 if options.teacher_lr is None else options.teacher_lr
    counts = options.epochs, options.teacher_epochs, options.score_every, options.batch, options.jobs
    if min(*counts, *(options.scale or [32])) < 1:
        parser.error('--epochs, --teacher-epochs, --score-every, --batch, --jobs and --scale must be positive')
    for name, rate in (('--lr', options.lr), ('--teacher-lr', options.teacher_lr)):
        if not 0 < rate < math.inf:
            parser.error(f'{name} must be a positive number, got {rate}')
    if options.workers < 0:
        parser.error(f'--workers must not be negative, got {options.workers}')
    names = [text.partition('=')[0] for text in options.methods]
    if len(set(options.seeds)) < len(options.seeds) or len(set(names)) < len(names):
        parser.error('--seeds and --methods must not name anything twice')
    lowest = min(*options.seeds, options.teacher_seed or 0)
    if lowest < 0:
        parser.error(f'--seeds and --teacher-seed must not be negative, got {lowest}')
    if 'teacher' in names:
        parser.error(f'--methods: the teacher is trained anyway; the other arms are {PLAIN} and methods')
    if not 0 <= options.hold_back < 1:
        parser.error(f'--hold-back must be in [0, 1), got {options.hold_back}')
    return options
