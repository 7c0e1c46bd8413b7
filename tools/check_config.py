"""Check a distillation's configuration on one image: wiring, weights, data, losses, gradients, cost."""

import argparse
import sys

from mmengine.config import DictAction
from rich.console import Console

from mmkd.engine.command_line import run_command
from mmkd.engine.config_check import check_config
from mmkd.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the configuration, or pkg::name such as mmkd::ssim/....py')
    parser.add_argument('--no-data', action='store_true', help='read no data set and run no image')
    parser.add_argument('--no-weights', action='store_true', help="do not fetch and read the teacher's weights")
    parser.add_argument('--strict', action='store_true', help='exit code 1 for warnings too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, as in tools/train.py')
    return parser.parse_args()


def main() -> int:
    """Check and print; returns the exit code."""
    args = parse_args()
    report = check_config(
        load_config(args.config, args.cfg_options), data=not args.no_data, weights=not args.no_weights
    )
    report.print(Console(width=None if sys.stdout.isatty() else 140))
    return report.exit_code(strict=args.strict)


if __name__ == '__main__':
    run_command(main)
