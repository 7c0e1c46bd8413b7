"""The command line of `tools/benchmark_cost.py`, and what it refuses before anything is built."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from mmkd.engine.cost_arms import distilled_name, stock_distiller
from mmkd.engine.cost_rounds import QUEUED, queued_steps
from mmkd.models.algorithms.teacher_options import TeacherOptions, split_teacher

EPILOG = """
Every arm takes a turn in each round of one process, in a random order, the same in every run. On a CPU the processor
time of the process counts, summed over its threads, on a GPU the device's own time over --queued steps that are put
into its queue one behind the other. Ratios come first; [low to high] holds the median with 95 % confidence (from six
rounds on; of eight or fewer it is their range).
  over_plain    distillation step / plain student step
  over_floor    distillation step / (plain student step + the float32 teacher's features)
  over_...      distillation step / the same pair and losses in MMRazor's own algorithms
Weights and batch are made: no data set is read and nothing is downloaded.
Example: python tools/benchmark_cost.py CONFIG --against mmrazor --shape 320 320 --shape 640 640 --teacher fold_bn
"""


def teacher_options(text: str) -> dict[str, Any]:
    """`bf16,channels_last` as options of a teacher.

    Raises:
        argparse.ArgumentTypeError: an unknown word.
    """
    options: dict[str, Any] = {}
    for word in text.split(','):
        options |= {word: True} if word in ('channels_last', 'fold_bn', 'compile') else {'precision': word}
    try:
        TeacherOptions(**options)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f'{text}: {error} Further words: channels_last, fold_bn, compile.') from error
    return options


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number >= 1, got {text}')
    return int(text)


def add_device_options(parser: argparse.ArgumentParser, device: str) -> None:
    """Where is measured, and how.

    Args:
        parser: That gets `--device`, `--threads` and `--queued`.
        device: Where nothing is said.
    """
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=device)
    parser.add_argument(
        '--threads', type=positive,
        help="threads on the CPU (1 with --device cpu, where the processor time of several is summed; else torch's own "
        'choice)',
    )  # fmt: skip
    parser.add_argument('--queued', type=positive, help=f'steps a turn, on a GPU only ({QUEUED}; on a CPU it is 1)')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description='Time and memory of a distillation step beside the plain student and beside MMRazor.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the process that measures memory gets these words without some options: `without`
    )
    parser.add_argument('config', help='configuration of a distillation, or pkg::name such as mmkd::ssim/....py')
    parser.add_argument('--against', choices=['mmrazor'], help="measure MMRazor's two algorithms too")
    parser.add_argument('--json', type=Path, help='new file for all figures')
    parser.add_argument(
        '--shape', type=positive, nargs=2, action='append', metavar=('H', 'W'), help='input in px (320 320); repeatable'
    )
    parser.add_argument('--batch', type=positive, nargs='+', default=[1], help='images a step (1)')
    parser.add_argument('--rounds', type=positive, default=7, help='rounds that count (7)')
    parser.add_argument('--warmup', type=positive, default=2, help='rounds before them (2)')
    parser.add_argument(
        '--teacher', type=teacher_options, action='append', default=[], metavar='OPTIONS',
        help='a further arm whose teacher has these options, such as bf16,channels_last; repeatable',
    )  # fmt: skip
    parser.add_argument('--memory', action='store_true', help='peak memory too, each arm in a process of its own')
    parser.add_argument(
        '--profile', action='store_true', help='count operations, and show which operators distillation adds time of'
    )
    add_device_options(parser, 'cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, as in tools/train.py')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.shape = args.shape or [[320, 320]]
    if args.device == 'cpu':
        args.threads = args.threads or 1
    args.command = sys.argv[1:] if argv is None else list(argv)
    return args


def check(args: argparse.Namespace, cfg: Any) -> None:
    """Refuse what cannot be measured before anything is built.

    Raises:
        FileExistsError: the JSON file is there.
        ValueError: options or a comparison that the configuration or the device does not allow.
    """
    if args.json is not None and args.json.exists() and not args.memory_of:
        raise FileExistsError(f'{args.json} exists; choose another file or remove it.')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch sees no GPU.')
    if cfg.model.get('teacher') is None and (args.teacher or args.against):
        raise ValueError(f'{args.config} has no teacher: --teacher and --against mean nothing.')
    queued_steps(args.queued, args.device)
    _check_names(args, split_teacher(cfg.model.get('teacher'))[1])
    if args.against:
        stock_distiller(cfg.model.distiller)


def _check_names(args: argparse.Namespace, own: TeacherOptions) -> None:
    names = {distilled_name(own): "the configuration's own teacher"}
    for given in args.teacher:
        options = TeacherOptions(**given)
        name = distilled_name(options)
        if name in names:
            raise ValueError(
                '--teacher must name other options than every arm beside it, '
                f'got {str(options).replace(", ", ",")}: {names[name]} makes the arm {name!r} already.'
            )
        names[name] = 'an earlier --teacher'
