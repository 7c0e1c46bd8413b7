"""Evaluate KITTI result files: 2D AP at easy, moderate and hard, R40 and R11, as the official evaluation."""

import argparse
import gc
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmkd.evaluation.kitti_ap import CLASSES
from mmkd.evaluation.kitti_report import evaluate_folders, format_table, write_json


def _overlap(text: str) -> tuple[str, float]:
    name, _, value = text.partition('=')
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f'an overlap is NAME=IOU, such as Car=0.5, got {text!r}') from None


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--labels', required=True, help='folder of label files, <frame>.txt with 15 fields a line')
    parser.add_argument('--results', required=True, help='folder of result files, <frame>.txt with 16 fields a line')
    parser.add_argument('--split', help='file that names the frames to evaluate; all labelled frames without it')
    parser.add_argument('--json', help='file to write the numbers to')
    parser.add_argument('--classes', nargs='+', default=CLASSES, metavar='NAME', help='types to evaluate')
    parser.add_argument(
        '--min-overlap',
        nargs='+',
        type=_overlap,
        default=[],
        metavar='NAME=IOU',
        help='other overlaps than the official',
    )
    return parser.parse_args()


def main() -> None:
    """Prints the table; a rule that the files break ends the program with status 1 and one line."""
    args = parse_args()
    gc.disable()  # a million short-lived words, no cycles: saves a fifth of the time
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
    try:
        result = evaluate_folders(
            args.labels, args.results, split=args.split, classes=args.classes, min_overlaps=dict(args.min_overlap)
        )
        print(format_table(result))
        if args.json:
            write_json(result, args.json)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
