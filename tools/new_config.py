"""Write the config of a distillation for a pair of detectors: a leaf of a dozen lines that trains as it is.

The student's own config stays the base, with its data, schedule and optimiser. The method file is chosen for the pair
(dense or RoI heads, heads that differ, an adaptation layer where channels differ). Both networks are built and wired
before anything is written.

    python tools/new_config.py --student my/student.py --teacher mmdet::retinanet/retinanet_r101_fpn_2x_coco.py \\
        --method ssim --out my/distilled.py
    python tools/new_config.py --student my/student.py --method mssd --out my/self_distilled.py
"""

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from mmkd.engine.command_line import run_command
from mmkd.engine.new_config import Request, write_config


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--student', required=True, metavar='CONFIG', help='plain detector: path or pkg::name')
    parser.add_argument('--teacher', metavar='CONFIG', help='plain detector; left out for mssd and frskd')
    parser.add_argument('--teacher-ckpt', metavar='FILE', help='its weights, path or URL (default: the published ones)')
    parser.add_argument('--method', required=True, help='ssim, mssd, ikd, mkd, frskd, or a file of _base_/methods')
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='config to write (.py)')
    parser.add_argument(
        '--other-classes', action='store_true', help='accept a teacher of other classes; only features are compared'
    )
    parser.add_argument('--force', action='store_true', help='write over a file that is there')
    return parser.parse_args()


def main() -> None:
    """Check and write."""
    args = parse_args()
    written = write_config(Request(**vars(args)))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for warning in written.warnings:
        console.print(f'warning: {warning}', style='yellow')
    console.print(written.text)
    console.print(f'Written to {args.out}, with the method file {written.method}.py. Next:', style='green')
    for tool in ('check_config', 'train'):
        console.print(f'    python tools/{tool}.py {shlex.quote(str(args.out))}')


if __name__ == '__main__':
    run_command(main)
