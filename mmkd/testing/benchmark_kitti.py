"""How long KITTI's AP takes on the whole of KITTI val: `python -m mmkd.testing.benchmark_kitti`.

Two ways to it are measured: the command `tools/eval_kitti.py`, from files, and `KittiMetric`, which a training or test
runs, from data samples. The labels are KITTI's real ones. The results are made from them with a fixed seed: shifted
boxes, scores of two digits (many ties), doubles, detections inside DontCare regions, about 30000 in 3769 frames.
"""

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmkd.evaluation.kitti_files import read_labels, read_results, read_split, result_line
from mmkd.evaluation.kitti_metric import KittiMetric
from mmkd.evaluation.kitti_objects import TYPES
from mmkd.testing.cost_options import positive
from mmkd.testing.data import shared_data
from mmkd.testing.methods import config_root

# A child's ru_maxrss starts from its parent's size; VmHWM (kB) is its own.
_RUN_AND_TELL_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)
"""
DETECTED = ('Car', 'Pedestrian', 'Cyclist')
IMAGE = (375, 1242)  # (H, W) px of most of KITTI's images
HEADS = (
    *('  frames', 'detections', 'parse cpu', 'command cpu', 'command wall'),
    *('process cpu', 'process wall', 'compute cpu', 'compute wall', 'command MB'),
)


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
            named = kind if kind in DETECTED else rng.choice(DETECTED)
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


def data_samples(results: Path, names: Sequence[str]) -> list[dict]:
    """Detections of result files as MMEngine's evaluator hands MMDetection's data samples to a metric.

    Args:
        results: folder of the files.
        names: of the frames, each taken to be an image of `IMAGE` px.

    Returns:
        One dictionary a frame: `img_path`, `ori_shape`, `pred_instances` with float32 `bboxes` (M, 4) in px and
        `scores`, and `labels` into `DETECTED`; M detections.
    """
    found = read_results(results, names)
    labels = np.array([DETECTED.index(kind) if kind in DETECTED else -1 for kind in TYPES])[found.type]
    ends, samples = np.searchsorted(found.frame, np.arange(len(names) + 1)), []
    for name, first, last in zip(names, ends[:-1], ends[1:], strict=True):
        sample = BaseDataElement(metainfo=dict(img_path=f'{name}.png', ori_shape=IMAGE))
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(found.boxes[first:last], dtype=torch.float32),
            scores=torch.tensor(found.score[first:last], dtype=torch.float32),
            labels=torch.tensor(labels[first:last]),
        )
        samples.append(sample.to_dict())
    return samples


def metric_cost(labels: Path, samples: Sequence[dict], batch: int) -> tuple[float, float, float, float]:
    """Processor and wall seconds of `KittiMetric.process` over all batches, and of `compute_metrics`.

    Args:
        labels: folder of the label files.
        samples: of `data_samples`.
        batch: samples that `process` is given at once.
    """
    metric = KittiMetric(str(labels))
    metric.dataset_meta = dict(classes=DETECTED)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the table of the scores
    try:
        marks = [(time.process_time(), time.perf_counter())]
        for first in range(0, len(samples), batch):
            metric.process(None, samples[first : first + batch])
        marks.append((time.process_time(), time.perf_counter()))
        metric.compute_metrics(metric.results)
        marks.append((time.process_time(), time.perf_counter()))
    finally:
        logging.disable(before)
    return tuple(last - first for pair in pairwise(marks) for first, last in zip(*pair, strict=True))


def measure(data: Path, *, copies: int, repeats: int, batch: int = 1) -> str:
    """One row of the table, in the order of `HEADS`."""
    with tempfile.TemporaryDirectory() as folder:
        labels, results, split = Path(folder, 'labels'), Path(folder, 'results'), Path(folder, 'split.txt')
        frames = read_split(data / 'ImageSets' / 'val.txt')
        names = write_labels(labels, frames, data / 'data_object_label_2.zip', copies=copies)
        detections = write_results(results, labels, names)
        split.write_text('\n'.join(names))
        parse = min(plain_parse_seconds([labels, results], names) for _ in range(repeats))
        costs = [command_cost(labels, results, split) for _ in range(repeats)]
        samples = data_samples(results, names)
        of_metric = [metric_cost(labels, samples, batch) for _ in range(repeats)]
    wall, processor, memory = zip(*costs, strict=True)
    seconds = [parse, min(processor), min(wall), *map(min, zip(*of_metric, strict=True))]
    cells = [f'{len(names)}', f'{detections}', *(f'{value:.2f}' for value in seconds), f'{max(memory):.0f}']
    return ' '.join(f'{cell:>{len(head)}}' for cell, head in zip(cells, HEADS, strict=True))


def main() -> None:
    """Prints seconds and memory for val, and for val several times over (it should grow in proportion)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--copies', type=positive, nargs='+', default=[1, 2, 4], help='how many times val, a row each')
    parser.add_argument('--repeats', type=positive, default=5, help='runs of each; the best is shown (5)')
    parser.add_argument('--batch', type=positive, default=1, help='frames that the metric is given at once (1)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = shared_data('kitti_labels')
    print('cpu: processor seconds, wall: clock seconds; the best of all runs, and the highest peak of memory')
    print('parse: a plain reader of the same files; command: all of tools/eval_kitti.py, its start included')
    print(f'process, compute: of KittiMetric, process() in batches of {args.batch} and compute_metrics()')
    print(' '.join(HEADS))
    for copies in args.copies:
        print(measure(data, copies=copies, repeats=args.repeats, batch=args.batch), flush=True)


if __name__ == '__main__':
    main()
