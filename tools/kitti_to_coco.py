"""Write KITTI's 2D labels as COCO json, one file a split; ignored regions become iscrowd."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmkd.datasets.kitti_coco import kitti_to_coco


def parse_args() -> argparse.Namespace:
    """Command line. There is no random split: KITTI's frames are cut out of video, so it would leak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data-root', required=True, help='folder with training/image_2 and training/label_2')
    parser.add_argument('--out', required=True, help='folder for <split>.json; existing files are never overwritten')
    parser.add_argument(
        '--splits',
        nargs='+',
        default=['ImageSets/train.txt', 'ImageSets/val.txt'],
        help='split files, relative to the data root; no two may share a frame',
    )
    parser.add_argument('--own-splits', action='store_true', help='accept other split files than the standard ones')
    parser.add_argument('--classes', nargs='+', help='types to keep; Car, Pedestrian, Cyclist without it')
    parser.add_argument(
        '--neighbours', choices=['ignore', 'drop', 'merge'], default='ignore', help='Van, Person_sitting'
    )
    parser.add_argument('--dont-care', choices=['ignore', 'drop'], default='ignore', help='DontCare regions')
    return parser.parse_args()


def main() -> None:
    """Converts; broken data or a file in the way ends the program with status 1 and one line."""
    args = parse_args()
    metainfo = {'classes': tuple(args.classes)} if args.classes else None
    options = {
        'own_splits': args.own_splits,
        'metainfo': metainfo,
        'neighbours': args.neighbours,
        'dont_care': args.dont_care,
    }
    try:
        written = kitti_to_coco(args.data_root, args.splits, args.out, **options)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    for path, frames in written:
        print(f'wrote {path} ({frames} frames)')


if __name__ == '__main__':
    main()
