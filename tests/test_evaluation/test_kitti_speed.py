"""The promise of speed and memory, on all of KITTI val; the row that the benchmark prints."""

import pytest

from mmkd.testing.benchmark_kitti import measure


@pytest.mark.slow
def test_whole_command_keeps_its_promises_on_val(data_path):
    frames, detections, parse, best, _, megabytes = map(
        float, measure(data_path('kitti_labels'), copies=1, repeats=3).split()
    )
    assert frames == 3769
    assert 28000 < detections < 32000
    assert best <= max(1.5, 5 * parse)
    assert megabytes < 500
