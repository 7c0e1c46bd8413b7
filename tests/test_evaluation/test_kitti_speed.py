"""The promise of speed and memory on all of KITTI val, in processor time, which other work does not disturb."""

import pytest

from mmkd.testing.benchmark_kitti import measure


@pytest.mark.slow
def test_whole_command_keeps_its_promises_on_val(data_path):
    row = measure(data_path('kitti_labels'), copies=1, repeats=2)  # the better of two
    frames, detections, parse, processor, _, megabytes = map(float, row.split())
    assert frames == 3769
    assert 28000 < detections < 32000
    assert processor <= max(1.5, 5 * parse)
    assert megabytes < 500
