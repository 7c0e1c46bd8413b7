"""`KittiMetric` as MMEngine drives it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import InstanceData

from mmkd.evaluation.kitti_ap import mean_ap
from mmkd.evaluation.kitti_metric import KittiMetric
from mmkd.evaluation.kitti_report import evaluate_folders

CLASSES = ('Car', 'Pedestrian', 'Cyclist')


def sample(frame, boxes, scores, labels):
    predicted = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
    metainfo = {'img_path': f'somewhere/{frame}.png', 'ori_shape': (375, 1242)}
    return DetDataSample(metainfo=metainfo, pred_instances=predicted)


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / 'label_2'
    folder.mkdir()
    for index in range(50):
        text = 'Car 0 0 -1.57 100 100 200 200 1 2 3 4 5 6 0.1\n'
        (folder / f'{index:06d}.txt').write_text(text if index < 45 else '')
    return folder


def run(metric, samples, **meta):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {'classes': CLASSES, **meta}
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


def found(index, x2=200.0):
    return sample(f'{index:06d}', [[100, 100, x2, 200]], [0.9], [0])


def test_reports_every_class_level_and_the_mean(labels):
    metrics = run(KittiMetric(str(labels)), [found(index) for index in range(45)])
    names = [*CLASSES, 'mean']
    keys = {f'kitti/{n}_{p}_{lv}' for n in names for p in ('R40', 'R11') for lv in ('easy', 'moderate', 'hard')}
    assert set(metrics) == keys
    assert metrics['kitti/Car_R40_moderate'] == metrics['kitti/mean_R11_easy'] == 100


def test_is_built_by_its_registered_name():
    assert isinstance(METRICS.build({'type': 'mmkd.KittiMetric'}), KittiMetric)


def test_labels_come_from_the_dataset_when_not_given(labels):
    metrics = run(KittiMetric(), [found(index) for index in range(45)], label_dir=str(labels))
    assert metrics['kitti/Car_R40_easy'] == 100
    with pytest.raises(ValueError, match='no label files are known'):
        run(KittiMetric(), [found(0)], label_dir='')


def test_frames_without_predictions_count(labels):
    samples = [found(index) for index in range(23)] + [sample(f'{index:06d}', [], [], []) for index in range(23, 45)]
    assert run(KittiMetric(str(labels)), samples)['kitti/Car_R40_moderate'] < 60


def test_metric_and_files_give_the_same_numbers(labels, tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for index in range(50):
        boxes = rng.normal([100, 100, 200, 200], 8, size=(3, 4))
        samples.append(sample(f'{index:06d}', boxes.tolist(), rng.random(3).tolist(), [0, 0, 1]))
    metrics = run(KittiMetric(str(labels), outfile_prefix=str(tmp_path / 'out')), samples)
    with pytest.warns(UserWarning, match='no ground truth'):
        from_files = evaluate_folders(labels, tmp_path / 'out')
    assert 0 < metrics['kitti/Car_R40_moderate'] < 100
    for level, name in enumerate(('easy', 'moderate', 'hard')):
        assert metrics[f'kitti/Car_R40_{name}'] == round(from_files['Car']['R40'][level], 4)


def test_format_only_writes_clipped_boxes_and_an_empty_file_for_an_empty_frame(tmp_path):
    metric = KittiMetric(format_only=True, outfile_prefix=str(tmp_path / 'out'))
    samples = [sample('000000', [[-5, -1, 1300, 400]], [0.5], [2]), sample('000001', [], [], [])]
    assert run(metric, samples) == {}
    words = (tmp_path / 'out' / '000000.txt').read_text().split()
    assert ' '.join(words) == 'Cyclist -1 -1 -10 0.0 0.0 1242.0 375.0 -1 -1 -1 -1000 -1000 -1000 -10 0.5'
    assert (tmp_path / 'out' / '000001.txt').read_text() == ''


def test_format_only_needs_a_folder():
    with pytest.raises(ValueError, match='outfile_prefix must name a folder'):
        KittiMetric(format_only=True)


def test_a_frame_seen_twice_is_refused(labels):
    with pytest.raises(ValueError, match='frame 000001 was seen twice'):
        run(KittiMetric(str(labels)), [found(0), found(1), found(1)])


def test_unknown_class_names_and_nan_are_refused(labels):
    with pytest.raises(ValueError, match="unknown KITTI type 'bus'"):
        run(KittiMetric(str(labels)), [found(0)], classes=('bus',))
    with pytest.raises(ValueError, match='000000:1: a value is NaN'):
        run(KittiMetric(str(labels)), [found(0, x2=float('nan'))])


def test_class_names_are_compared_without_case_and_chosen_classes_only(labels):
    metric = KittiMetric(str(labels), classes=['Car'], min_overlaps={'Car': 0.5})
    metrics = run(metric, [found(index, x2=155.0) for index in range(45)], classes=('car',))
    assert metrics['kitti/Car_R40_hard'] == 100
    assert not any('Cyclist' in key for key in metrics)


@pytest.mark.slow
def test_two_processes_report_what_one_does(labels, tmp_path):
    script, root = Path(__file__).with_name('kitti_metric_rank.py'), str(Path(__file__).parents[2])
    env = {**os.environ, 'PYTHONPATH': root}

    def start(rank, world):
        command = [sys.executable, str(script), str(rank), str(world), str(tmp_path / 'store'), str(labels)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    outputs = []
    for processes in ([start(0, 2), start(1, 2)], [start(0, 1)]):
        outputs.append([json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes])
    (first, second), (alone,) = outputs
    assert first == second == alone
    assert 0 < alone['kitti/Car_R40_moderate'] < 100


@pytest.mark.parametrize(
    ('options', 'meta', 'message'),
    [
        ({}, dict(classes=('Van', 'Truck')), r'the data set has Van, Truck: give KittiMetric min_overlaps'),
        (dict(classes=['Van']), {}, "'Van' has no official overlap"),
        (dict(min_overlaps={'Car': 2}), {}, r'overlap of Car must be in \[0, 1\)'),
        (dict(label_dir='label_3'), {}, 'no folder of label files .*label_3.*nearest: label_2'),
        (dict(label_dir=None), {}, 'no label files are known'),
    ],
)
def test_what_cannot_be_scored_is_said_at_the_first_batch(labels, options, meta, message):
    folder = options.get('label_dir', 'label_2')
    options = options | dict(label_dir=folder and str(labels.with_name(folder)))
    metric = KittiMetric(**options)
    metric.dataset_meta = {'classes': CLASSES, **meta}
    with pytest.raises(ValueError, match=message):
        metric.process(None, [found(0).to_dict()])


def test_joined_folders_are_refused_and_types_with_an_overlap_of_their_own_are_scored(labels):
    metric = KittiMetric(str(labels))
    metric.dataset_meta = [{'classes': CLASSES, 'label_dir': 'a'}, {'classes': CLASSES, 'label_dir': 'b'}]
    with pytest.raises(ValueError, match='scores the frames of one folder; 2 data sets'):
        metric.process(None, [found(0).to_dict()])
    own = run(KittiMetric(str(labels), min_overlaps={'van': 0.7}), [found(0)], classes=('Van', 'Car'))
    assert {name.split('_')[0] for name in own} == {'kitti/Van', 'kitti/Car', 'kitti/mean'}


def test_scores_behind_which_no_object_counts_are_named(labels):
    metric = KittiMetric(str(labels))
    scores = run(metric, [found(index) for index in range(45)])
    assert {name.partition('_')[0] for name in metric.without_objects} == {'Pedestrian', 'Cyclist'}
    small = labels.with_name('small')
    small.mkdir()
    (small / '000000.txt').write_text('Car 0 0 -1.57 100 100 200 120 1 2 3 4 5 6 0.1\n')  # 20 px: never counted
    metric = KittiMetric(str(small))
    assert set(run(metric, [found(0)])) == set(scores)
    assert {f'kitti/{name}' for name in metric.without_objects} == set(scores)


def test_the_mean_of_no_class_is_zero():
    assert mean_ap({}) == {'R40': [0.0] * 3, 'R11': [0.0] * 3}
