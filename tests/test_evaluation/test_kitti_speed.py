"""How much is done and kept for all of KITTI val; `mmkd.testing.benchmark_kitti` tells how long it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmkd.evaluation.kitti_files import read_split
from mmkd.testing.benchmark_kitti import measure, tool, write_labels, write_results

pytestmark = pytest.mark.slow

# Runs the command and prints, as its last line, how often a text file was opened, and the lines of Python executed in
# each file of the package.
COUNT = """
import collections, json, runpy, sys
lines, opened = collections.Counter(), 0
def count_open(event, arguments):
    global opened
    opened += event == 'open' and str(arguments[0]).endswith('.txt')
def each_line(frame, event, argument):
    if event == 'line':
        lines[frame.f_code.co_filename.rsplit('/', 1)[-1]] += 1
    return each_line
sys.argv = sys.argv[1:]
sys.addaudithook(count_open)
sys.settrace(lambda frame, *_: each_line if '/mmkd/' in frame.f_code.co_filename else None)
runpy.run_path(sys.argv[0], run_name='__main__')
sys.settrace(None)
print(json.dumps([opened, lines]))
"""


def test_whole_command_keeps_its_promise_of_memory_on_val(data_path):
    frames, detections, *_, megabytes = map(float, measure(data_path('kitti_labels'), copies=1, repeats=1).split())
    assert frames == 3769
    assert 28000 < detections < 32000
    assert megabytes < 500


def test_whole_command_reads_a_file_once_and_loops_over_no_boxes(data_path, tmp_path: Path):
    data = data_path('kitti_labels')
    split, labels, results = data / 'ImageSets' / 'val.txt', tmp_path / 'labels', tmp_path / 'results'
    names = write_labels(labels, read_split(split), data / 'data_object_label_2.zip', copies=1)
    write_results(results, labels, names)
    rows = sum(path.read_bytes().count(b'\n') for folder in (labels, results) for path in folder.iterdir())
    command = [sys.executable, '-c', COUNT, str(tool()), '--labels', str(labels), '--results', str(results)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened, lines = json.loads(done.stdout.splitlines()[-1])
    assert opened == 2 * len(names)
    assert sum(lines.values()) < 12 * rows  # about 8: less than one for each of a row's 15 or 16 words
    assert lines['kitti_matching.py'] < len(names)  # all frames at once
