"""Export the student of a distillation: a plain MMDetection checkpoint, its configuration, and an ONNX graph.

The checkpoint has no optimiser, no teacher and nothing of mmkd; beside it lies its configuration under the same name
with .py: `mmdet.apis.init_detector(FILE.py, FILE.pth)` loads the pair where mmkd is not installed. Checkpoints of
MMRazor's own distillations ("architecture.*", "teacher.*") are converted. Both files are loaded and compared with the
source before they are written.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mmkd.engine.command_line import run_command

EXAMPLES = """examples:
  python tools/export_student.py work_dirs/distilled --out student.pth
  python tools/export_student.py work_dirs/distilled/epoch_12.pth --out student.pth --onnx student.onnx --shape 800 1344
  python tools/export_student.py old_mmrazor_run.pth --config mmdet::gfl/gfl_r50_fpn_1x_coco.py --out student.pth
"""


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='checkpoint (path or URL), or work directory: its last checkpoint that is whole')
    parser.add_argument('--out', type=Path, required=True, help='checkpoint to write, .pth; the .py goes beside it')
    parser.add_argument('--onnx', type=Path, help='ONNX graph to write, .onnx; for any number of images of one size')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width in px of the ONNX input, padding included, and for the count of GFLOPs (default: what '
        'the test pipeline makes of a landscape picture)',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='float16 weights in the checkpoint: half the file, to store or send. Loaded, they are float32 again, so '
        'that nothing runs faster; the change of the outputs is measured and printed',
    )
    parser.add_argument('--raw', action='store_true', help='the raw weights of a run with EMA, instead of the average')
    parser.add_argument(
        '--config',
        help='configuration of the student or of its run, path or pkg::name, for a checkpoint without one (default: '
        'the one in the checkpoint, read as data and not run)',
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    return parser.parse_args()


def main() -> None:
    """Export and print."""
    args = parse_args()
    from mmkd.engine.export import ExportOptions, export_student

    shape = tuple(args.shape) if args.shape else None
    options = ExportOptions(args.out, args.onnx, shape, args.config, args.raw, args.half, args.force)
    export_student(args.source, options).print(Console(width=None if sys.stdout.isatty() else 140))


if __name__ == '__main__':
    run_command(main)
