"""How long `tools/eval_kitti.py` takes on the whole of KITTI val: `python -m mmkd.testing.benchmark_kitti`.

The labels are KITTI's real ones. The results are made from them with a fixed seed: shifted boxes, scores of two digits
(many ties), doubles, detections inside DontCare regions, about 30000 in 3769 frames.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mmkd.evaluation.kitti_files import read_labels, read_split, result_line
from mmkd.evaluation.kitti_objects import TYPES
from mmkd.testing.data import shared_data
from mmkd.testing.methods import config_root

# A child's ru_maxrss starts from its parent's size; VmHWM (kB) is its own.
_RUN_AND_TELL_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)
"""
_DETECTED = ('Car', 'Pedestrian', 'Cyclist')


def tool() -> Path:
    """The script that is measured, of a checkout or of an installed package."""
    return config_root().parent / 'tools' / 'eval_kitti.py'


def write_labels(folder: Path, names: Sequence[str], archive: Path, *, copies: int) -> list[str]:
    """Extracts label files, each `copies` times under a new name; returns the names."""
    folder.mkdir(parents=True)
    written = []
    with zipfile.ZipFile(archive) as labels:
        for name in names:
            content = labels.read(f'training/label_2/{name}.txt')
            for copy in range(copies):
                written.append(f'{copy}{name}')
                (folder / f'{copy}{name}.txt').write_bytes(content)
    return written


def write_results(folder: Path, labels: Path, names: Sequence[str], *, seed: int = 0) -> int:
    """Writes made results for label files; returns the number of detections."""
    folder.mkdir(parents=True)
    rng, objects = random.Random(seed), read_labels(labels, names)
    lines: list[list[str]] = [[] for _ in names]
    for frame, code, box in zip(objects.frame, objects.type, objects.boxes.tolist(), strict=True):
        kind, spread = TYPES[code], 0.04 * (box[2] - box[0])
        for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2, 2])):
            x1, y1, x2, y2 = (max(0.0, round(value + rng.gauss(0, spread), 2)) for value in box)
            named = kind if kind in _DETECTED else rng.choice(_DETECTED)
            score = round(rng.betavariate(4, 2), 2)
            lines[frame].append(result_line(named, (x1, y1, max(x1, x2), max(y1, y2)), score))
    for name, content in zip(names, lines, strict=True):
        (folder / f'{name}.txt').write_text(''.join(content))
    return sum(map(len, lines))


def plain_parse_seconds(folders: Sequence[Path], names: Sequence[str]) -> float:
    """Processor time of the obvious reader: every line split, every field a float."""
    start = time.process_time()
    for folder in folders:
        for name in names:
            with open(folder / f'{name}.txt') as file:
                for line in file:
                    words = line.split()
                    [float(word) for word in words[1:]]
    return time.process_time() - start


def command_cost(labels: Path, results: Path, split: Path) -> tuple[float, float, float]:
    """Wall and processor seconds and peak memory in MB of the whole command, start of Python included."""
    arguments = ['--labels', str(labels), '--results', str(results), '--split', str(split)]
    command = [sys.executable, '-c', _RUN_AND_TELL_PEAK, str(tool()), *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with status {process.returncode}: {said}')
    return seconds, usage.ru_utime + usage.ru_stime, int(said.split()[-1]) / 1024


def measure(data: Path, *, copies: int, repeats: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        labels, results, split = Path(folder, 'labels'), Path(folder, 'results'), Path(folder, 'split.txt')
        frames = read_split(data / 'ImageSets' / 'val.txt')
        names = write_labels(labels, frames, data / 'data_object_label_2.zip', copies=copies)
        detections = write_results(results, labels, names)
        split.write_text('\n'.join(names))
        parse = min(plain_parse_seconds([labels, results], names) for _ in range(repeats))
        costs = [command_cost(labels, results, split) for _ in range(repeats)]
    wall, processor, memory = zip(*costs, strict=True)
    return f'{len(names):8d}{detections:12d}{parse:16.2f}{min(processor):14.2f}{min(wall):10.2f}{max(memory):10.0f}'


def main() -> None:
    """Prints seconds and memory for val, and for val several times over (it should grow in proportion)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--copies', type=int, nargs='+', default=[1, 2, 4], help='how many times val, one row each')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; the best is shown')
    args = parser.parse_args()
    data = shared_data('kitti_labels')
    print('processor seconds of a plain reader and of the command; wall seconds of the command; the best of all runs')
    print(
        f'{"frames":>8s}{"detections":>12s}{"plain parse, s":>16s}{"command, s":>14s}{"wall, s":>10s}{"peak MB":>10s}'
    )
    for copies in args.copies:
        print(measure(data, copies=copies, repeats=args.repeats), flush=True)


if __name__ == '__main__':
    main()
