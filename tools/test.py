"""Test a detector: MMDetection's `tools/test.py` and its options, also for distillation configurations.

`--compare` scores the teacher and other checkpoints of the same student beside it, `--cost` measures what each costs;
both print one table and write comparison.json into the log folder of the test.
"""

import argparse
import copy

from mmkd.engine.command_line import add_run_arguments, run_command, set_local_rank
from mmkd.engine.launch import load_config, prepare_test
from mmkd.engine.testing import TestOptions, test


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration of the student or of its distillation: path or pkg::name')
    parser.add_argument('checkpoint', help='checkpoint of the student')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the detections in a window')
    parser.add_argument('--show-dir', help='save pictures of the detections in this folder of the work directory')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between pictures of --show')
    parser.add_argument(
        '--compare',
        nargs='*',
        metavar='[NAME=]CHECKPOINT',
        help='score these checkpoints of the same student too (such as plain=work_dirs/plain/epoch_12.pth) and, where '
        'the configuration is that of a distillation, its teacher; on the same images by the same evaluator',
    )
    parser.add_argument(
        '--cost',
        action='store_true',
        help='print parameters, GFLOPs and the time of an image (batch 1), of each detector',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Test."""
    args = parse_args()
    set_local_rank(args.local_rank, args.launcher)
    read = load_config(args.config, args.cfg_options)
    cfg = prepare_test(
        copy.deepcopy(read), args.checkpoint, work_dir=args.work_dir, config_name=args.config, launcher=args.launcher
    )
    compare = None if args.compare is None else tuple(args.compare)
    options = TestOptions(args.out, args.show, args.show_dir, args.wait_time, args.tta, compare, args.cost)
    test(cfg, options, read)


if __name__ == '__main__':
    run_command(main)
