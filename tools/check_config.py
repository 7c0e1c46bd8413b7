"""Check a distillation's configuration on one image: wiring, weights, data, losses, gradients, cost.

    python tools/check_config.py my/distilled.py
    python tools/check_config.py my/distilled.py --no-data --no-weights     on a machine that has neither
    python tools/check_config.py my/distilled.py --diagnose 8               is the weight of the loss about right?

Nothing is written. Exit code 1 where the training would fail or teach nothing; with --strict for warnings too.
"""

import argparse
import sys

from mmengine.config import DictAction
from rich.console import Console

from mmkd.engine.command_line import run_command
from mmkd.engine.config_check import check_config
from mmkd.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path of the configuration, or pkg::name such as mmkd::ssim/....py')
    parser.add_argument('--no-data', action='store_true', help='read no data set and run no image')
    parser.add_argument('--no-weights', action='store_true', help="do not fetch and read the teacher's weights")
    parser.add_argument(
        '--diagnose',
        type=int,
        default=0,
        metavar='N',
        help='compare gradients and features of distillation and task on N training batches, without training '
        '(docs/diagnosis.md)',
    )
    parser.add_argument('--strict', action='store_true', help='exit code 1 for warnings too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, as in tools/train.py')
    args = parser.parse_args()
    if args.diagnose < 0 or (args.diagnose and (args.no_data or args.no_weights)):
        parser.error('--diagnose needs a number of batches, the data and the weights')
    return args


def main() -> int:
    """Check and print; returns the exit code."""
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    report = check_config(cfg, data=not args.no_data, weights=not args.no_weights, diagnose=args.diagnose)
    report.print(Console(width=None if sys.stdout.isatty() else 140))
    return report.exit_code(strict=args.strict)


if __name__ == '__main__':
    run_command(main)
