"""`kitti_eval` on results made from KITTI's real label files, against the straight loops."""

import random
import zipfile

import pytest
from naive_kitti import as_frames, naive_eval

from mmkd.evaluation.kitti_ap import kitti_eval
from mmkd.evaluation.kitti_files import parse, read_split
from mmkd.evaluation.kitti_objects import TYPES


def read_zip(folder, split):
    """Labels of a split, straight from the archive."""
    names = read_split(folder / 'ImageSets' / f'{split}.txt')
    with zipfile.ZipFile(folder / 'data_object_label_2.zip') as archive:
        blobs = [archive.read(f'training/label_2/{name}.txt') for name in names]
    return parse(names, names, blobs, scored=False)


def made_results(truths, seed):
    """A scene of the labels and noisy detections: scores with two digits (ties), doubles, detections of DontCare."""
    rng = random.Random(seed)
    scene = [([], []) for _ in truths.names]
    columns = zip(truths.frame, truths.type, truths.truncation, truths.occlusion, truths.boxes.tolist(), strict=True)
    for frame, code, truncation, occlusion, box in columns:
        kind = TYPES[code]
        scene[frame][0].append((kind, truncation, occlusion, tuple(box)))
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2]) if kind != 'DontCare' else rng.randrange(2)):
            spread = 0.05 * (box[2] - box[0])
            x1, y1, x2, y2 = (max(0.0, round(value + rng.gauss(0, spread), 2)) for value in box)
            named = kind if kind in ('Car', 'Pedestrian', 'Cyclist') else rng.choice(['Car', 'Pedestrian', 'Van'])
            scene[frame][1].append((named, (x1, y1, max(x1, x2), max(y1, y2)), round(rng.betavariate(4, 2), 2)))
    return scene


def compare(scene, frames):
    scene = scene[:frames]
    result = kitti_eval(*as_frames(scene))
    for name, scores in result.items():
        for level in range(3):
            r40, r11, num_gt = naive_eval(scene, name, level)
            assert scores['R40'][level] == pytest.approx(r40, abs=1e-9)
            assert scores['R11'][level] == pytest.approx(r11, abs=1e-9)
            assert scores['num_gt'][level] == num_gt
    return result


def test_equals_the_loops_on_400_real_frames(data_path):
    result = compare(made_results(read_zip(data_path('kitti_labels'), 'val'), 0), 400)
    assert 20 < result['Car']['R40'][1] < 90
    assert result['Cyclist']['R40'][1] > 1


@pytest.mark.slow
def test_equals_the_loops_on_all_of_val(data_path):
    compare(made_results(read_zip(data_path('kitti_labels'), 'val'), 1), None)


def test_counts_the_valid_objects_of_val(data_path):
    truths = read_zip(data_path('kitti_labels'), 'val')
    with pytest.warns(UserWarning, match='no detections'):
        result = kitti_eval(truths, parse(truths.names, truths.names, [b''] * len(truths.names), scored=True))
    assert {name: scores['num_gt'] for name, scores in result.items()} == {
        'Car': [2906, 7874, 10960],
        'Pedestrian': [1134, 1739, 2172],
        'Cyclist': [281, 544, 600],
    }


def test_perfect_detections_of_real_labels_score_100(data_path):
    truths = read_zip(data_path('kitti_labels'), 'val')
    scene = made_results(truths, 0)
    perfect = [
        (frame, [(kind, box, 1 - index / 100) for index, (kind, _, _, box) in enumerate(frame) if kind != 'DontCare'])
        for frame, _ in scene
    ]
    result = kitti_eval(*as_frames(perfect))
    for scores in result.values():
        assert scores['R40'] == pytest.approx([100] * 3, abs=0.5)
