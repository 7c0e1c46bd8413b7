"""Pictures of a distillation: what its losses compare, where its networks look, what they detect.

For every image: a picture of each loss (student, teacher, their difference, what the loss makes of them, its mask; a
row a level), one of attention maps, gates and masks over the image, and the detections of plain student, distilled
student and teacher beside the ground truth. Nothing is trained, and no file but the pictures is written.

    python tools/visualize_distillation.py CONFIG work_dirs/NAME/epoch_12.pth photo.jpg --out pictures
    python tools/visualize_distillation.py CONFIG work_dirs/NAME/epoch_12.pth --val 0 7 --plain plain.pth --out pictures
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console

from mmkd.engine.command_line import run_command
from mmkd.engine.distillation_pictures import KINDS
from mmkd.engine.launch import load_config
from mmkd.engine.visualize import VisualizeOptions, split_files, visualize


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration of the distillation: path or pkg::name')
    parser.add_argument(
        'files',
        nargs='*',
        metavar='[CHECKPOINT] IMAGE',
        help='checkpoint of the distilled student (.pth; without it: the student before training), then images',
    )
    parser.add_argument('--val', type=int, nargs='+', default=[], metavar='INDEX', help='validation images, from 0')
    parser.add_argument('--annotations', help='COCO json with the objects of IMAGE; without: detections stand in')
    parser.add_argument('--plain', metavar='CKPT', help='checkpoint of the plain student, for the detections')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the pictures')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, help='what to draw (default: all)')
    parser.add_argument('--levels', nargs='+', metavar='P', help='levels such as p3 p4 (default: all)')
    parser.add_argument('--threshold', type=float, default=0.3, help='lowest score of a detection (0.3)')
    parser.add_argument('--dpi', type=int, default=110, help='dots an inch of the pictures (110)')
    parser.add_argument('--device', help='torch device (default: cuda where there is one)')
    parser.add_argument('--force', action='store_true', help='write over pictures of an earlier call')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, as in tools/train.py')
    return parser.parse_args()


def main() -> None:
    """Draw."""
    args = parse_args()
    checkpoint, images = split_files(args.files, named_images=bool(args.val))
    given = dict(device=args.device) if args.device else {}
    options = VisualizeOptions(
        args.out,
        checkpoint,
        args.plain,
        images,
        args.val,
        args.annotations,
        args.kinds,
        args.levels,
        args.threshold,
        args.dpi,
        force=args.force,
        **given,
    )
    files, remarks = visualize(load_config(args.config, args.cfg_options), options)
    console = Console(soft_wrap=True)
    for remark in remarks:
        console.print(f'note: {remark}', style='yellow', markup=False, highlight=False)
    for file in files:
        console.print(str(file), markup=False, highlight=False)


if __name__ == '__main__':
    run_command(main)
