"""The benchmark of KITTI's AP feeds the metric what a test would; no test looks at how long anything took."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmkd.evaluation.kitti_metric import KittiMetric
from mmkd.evaluation.kitti_report import evaluate_folders
from mmkd.testing import benchmark_kitti
from mmkd.testing.benchmark_kitti import DETECTED, HEADS, data_samples, measure, metric_cost, write_results

NAMES = [f'{number:06d}' for number in range(30)]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Labels of cars and pedestrians, the last frame without any, and results made from them."""
    labels = tmp_path / 'labels'
    labels.mkdir()
    for name in NAMES:
        boxes = ('Car 0 0 0 100 100 200 180', 'Pedestrian 0 0 0 400 100 440 200', 'Van 0 0 0 500 90 600 200')
        lines = [] if name == NAMES[-1] else [f'{box} 1 1 1 1 1 1 0\n' for box in boxes]
        (labels / f'{name}.txt').write_text(''.join(lines))
    write_results(tmp_path / 'results', labels, NAMES)
    return labels, tmp_path / 'results'


def test_samples_are_those_of_mmdetection(folders: tuple[Path, Path]):
    samples = data_samples(folders[1], NAMES)
    assert len(samples) == len(NAMES)
    assert len(samples[-1]['pred_instances']['bboxes']) == 0
    for name, sample in zip(NAMES, samples, strict=True):
        rows = [line.split() for line in (folders[1] / f'{name}.txt').read_text().splitlines()]
        predicted = InstanceData(
            bboxes=torch.tensor([[float(word) for word in row[4:8]] for row in rows]).reshape(-1, 4),
            scores=torch.tensor([float(row[-1]) for row in rows]),
            labels=torch.tensor([DETECTED.index(row[0]) for row in rows], dtype=torch.int64),
        )
        expected = DetDataSample(metainfo=dict(img_path=f'{name}.png', ori_shape=(375, 1242)))
        expected.pred_instances = predicted
        expected = expected.to_dict()
        assert sample.keys() == expected.keys()
        assert (sample['img_path'], sample['ori_shape']) == (expected['img_path'], expected['ori_shape'])
        for key, value in expected['pred_instances'].items():
            assert torch.equal(sample['pred_instances'][key], value)
            assert sample['pred_instances'][key].dtype == value.dtype


def test_the_metric_sees_every_frame_in_batches_and_finds_what_the_command_finds(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    batches, found = [], []

    class Spy(KittiMetric):
        def process(self, data_batch, data_samples):
            batches.append(len(data_samples))
            super().process(data_batch, data_samples)

        def compute_metrics(self, results):
            found.append(super().compute_metrics(results))
            return found[-1]

    monkeypatch.setattr(benchmark_kitti, 'KittiMetric', Spy)
    seconds = metric_cost(folders[0], data_samples(folders[1], NAMES), 8)
    assert batches == [8, 8, 8, 6]
    assert len(seconds) == 4 and min(seconds) >= 0
    expected = evaluate_folders(*folders, classes=['Car', 'Pedestrian'])
    for name in ('Car', 'Pedestrian'):
        for index, level in enumerate(('easy', 'moderate', 'hard')):
            assert found[0][f'{name}_R40_{level}'] == pytest.approx(expected[name]['R40'][index], abs=0.01)
    assert expected['Car']['R40'][1] > 0
    assert 'KITTI' not in capfd.readouterr().out  # the table of scores would stand inside of that of seconds


def test_a_row_has_a_cell_under_every_head(monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], tmp_path: Path):
    (tmp_path / 'ImageSets').mkdir()
    (tmp_path / 'ImageSets' / 'val.txt').write_text('\n'.join(NAMES))

    def copied(folder: Path, names: list[str], archive: Path, *, copies: int) -> list[str]:
        folder.symlink_to(folders[0])
        return names

    monkeypatch.setattr(benchmark_kitti, 'write_labels', copied)
    monkeypatch.setattr(benchmark_kitti, 'command_cost', lambda *_: (3.0, 2.0, 118.4))
    asked = iter([(4.0, 6.0, 8.0, 9.0), (5.0, 5.0, 7.0, 10.0)])
    monkeypatch.setattr(benchmark_kitti, 'metric_cost', lambda labels, samples, batch: next(asked))
    row = measure(tmp_path, copies=1, repeats=2, batch=4)
    assert len(row) == len(' '.join(HEADS))
    frames, _, _, *rest = row.split()
    assert frames == '30'
    assert rest == ['2.00', '3.00', '4.00', '5.00', '7.00', '9.00', '118']


@pytest.mark.parametrize('option', ['--copies', '--repeats', '--batch'])
def test_counts_below_one_are_refused(option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr('sys.argv', ['benchmark_kitti', option, '0'])
    with pytest.raises(SystemExit):
        benchmark_kitti.main()
    assert f'argument {option}: must be a whole number >= 1, got 0' in capsys.readouterr().err
