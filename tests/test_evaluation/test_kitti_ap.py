"""`kitti_eval` against worked examples, controlled cases with known results, and straight loops."""

import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_kitti import as_frames, naive_eval, thresholds_of

from mmkd.evaluation.kitti_ap import average_precision, kitti_eval, mean_ap, score_thresholds
from mmkd.evaluation.kitti_objects import TYPES
from mmkd.evaluation.kitti_report import format_table

A, B = (100, 100, 200, 200), (400, 100, 500, 200)
CAR, FOUND_A = ('Car', 0, 0, A), ('Car', A, 0.9)


def evaluate(scene, **options):
    """`kitti_eval` without its warnings, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return kitti_eval(*as_frames(scene), **options)


def car(scene):
    """R40 and R11 of Car at moderate."""
    scores = evaluate(scene)['Car']
    return scores['R40'][1], scores['R11'][1]


def test_example_a_one_false_positive_between_three_hits():
    boxes = [(150 * i, 100, 150 * i + 100, 200) for i in range(5)]
    truths = [('Car', 0, 0, box) for box in boxes[:4]]
    founds = [('Car', box, score) for box, score in zip(boxes[:3], (0.9, 0.8, 0.6), strict=True)]
    assert car([(truths, [*founds, ('Car', boxes[4], 0.7)])]) == pytest.approx((4.375, 100 / 11))


def test_example_b_the_first_pass_prefers_the_score():
    founds = [('Car', (0, 100, 100, 180), 0.9), ('Car', (0, 100, 100, 200), 0.6)]
    assert car([([('Car', 0, 0, (0, 100, 100, 200))], founds)]) == pytest.approx((0, 100 / 11))


def test_example_c_the_second_pass_prefers_the_overlap():
    truths = [('Car', 0, 0, (0, 100, 100, 200)), ('Car', 0, 0, B)]
    founds = [('Car', (0, 100, 100, 180), 0.9), ('Car', (0, 100, 100, 200), 0.6), ('Car', B, 0.5)]
    assert car([(truths, founds)]) == pytest.approx((100 * 2 / 3 / 40, 100 / 11))


def test_example_d_an_earlier_ignored_box_takes_the_detection():
    van, later = ('Van', 0, 0, (0, 100, 100, 200)), ('Car', 0, 0, (0, 100, 100, 190))
    founds = [('Car', (0, 100, 100, 190), 0.9)]
    assert car([([van, later], founds)]) == (0, 0)
    assert car([([later, van], founds)]) == pytest.approx((0, 100 / 11))


def test_example_e_half_of_a_hundred_boxes_found():
    scene = [([CAR, ('Car', 0, 0, B)], [FOUND_A])] * 50
    assert car(scene) == pytest.approx((50, 600 / 11))


KEPT = {
    42: ' '.join(map(str, [*range(30), *range(31, 42)])),
    60: '0 1 2 4 5 6 8 9 11 12 14 15 17 19 20 22 23 25 26 28 29 31 32 34 35 37 38 40 41 43 44 46 47 49 50 52 53 55 '
    '56 58 59',
    100: '0 2 4 7 9 11 14 16 19 21 24 26 29 31 34 37 39 42 44 47 49 52 54 57 59 62 64 67 69 72 74 77 79 82 84 '
    '87 89 92 94 97 99',
}


@pytest.mark.parametrize('n', KEPT)
def test_thresholds_are_the_published_ranks(n):
    ranks = -score_thresholds(-np.arange(n, dtype=float), n)
    assert ranks.tolist() == [int(rank) for rank in KEPT[n].split()]


def test_thresholds_accumulate_recall_and_never_exceed_41():
    for n in range(1, 1200, 7):
        scores = [float(n - i) for i in range(n)]
        assert score_thresholds(scores, n).tolist() == thresholds_of(scores, n)
        assert len(score_thresholds(scores, n)) <= 41


def at(box, kind='Car', truncation=0, occlusion=0):
    return kind, truncation, occlusion, box


DONT_CARE = at((390, 90, 510, 210), 'DontCare', -1, -1)
FP_B = ('Car', B, 0.95)
ONES, HALF, EASY_ONLY = (
    ((100,) * 3, (100,) * 3),
    ((50,) * 3, (600 / 11,) * 3),
    ((100, 50, 50), (100, 600 / 11, 600 / 11)),
)
FP_HALF = ((50,) * 3, (50,) * 3)
# number: (ground truth, detections, frames, (R40, R11)), each added to the base scene.
CASES = {
    1: ([], [], 50, ONES),
    2: ([], [], 1, ((0,) * 3, (100 / 11,) * 3)),
    3: ([], [], 5, ((10,) * 3, (200 / 11,) * 3)),
    4: ([], [], 20, ((47.5,) * 3, (500 / 11,) * 3)),
    5: ([], [], 40, ((97.5,) * 3, (1000 / 11,) * 3)),
    6: ([], [], 41, ONES),
    7: ([at(B, occlusion=1)], [], 50, EASY_ONLY),
    8: ([at(B, occlusion=3)], [], 50, ONES),
    9: ([at(B, truncation=0.15)], [], 50, HALF),
    10: ([at(B, truncation=0.30)], [], 50, EASY_ONLY),
    11: ([at(B, truncation=0.51)], [], 50, ONES),
    12: ([at((400, 100, 500, 125))], [], 50, ONES),
    13: ([at((400, 100, 500, 126))], [], 50, EASY_ONLY),
    14: ([at((400, 100, 500, 140.5))], [], 50, HALF),
    15: ([], [('Car', (400, 100, 500, 124.99), 0.95)], 50, ONES),
    16: ([], [('Car', (400, 100, 500, 125), 0.95)], 50, ((100, 50, 50), (100, 50, 50))),
    17: ([], [('Car', (400, 100, 500, 140), 0.95)], 50, FP_HALF),
    18: ([DONT_CARE], [FP_B], 50, ONES),
    19: ([at((400, 100, 470, 200), 'DontCare', -1, -1)], [FP_B], 50, FP_HALF),
    20: ([at(B, 'Van')], [FP_B], 50, ONES),
    21: ([at(B, 'Truck')], [FP_B], 50, FP_HALF),
    22: ([], [('Car', A, 0.95)], 50, ONES),
    23: ([], [('Car', A, 0.9)], 50, FP_HALF),
    26: ([at((400, 100, 500, 126))], [('Car', (400, 100, 500, 124.5), 0.95)], 50, EASY_ONLY),
    27: ([at(B, 'Cyclist')], [], 50, ONES),
}


@pytest.mark.parametrize('number', CASES)
def test_controlled_case(number):
    truths, founds, frames, (r40, r11) = CASES[number]
    scores = evaluate([([CAR, *truths], [FOUND_A, *founds])] * frames)['Car']
    assert scores['R40'] == pytest.approx(r40, abs=1e-9)
    assert scores['R11'] == pytest.approx(r11, abs=1e-9)


def test_controlled_case_24_iou_of_exactly_the_limit_is_no_hit():
    scores = evaluate([([CAR], [('Car', (100, 100, 200, 170), 0.9)])] * 50)['Car']
    assert scores['R40'] == scores['R11'] == [0, 0, 0]


def test_controlled_case_25_pedestrian_at_iou_above_half():
    scene = [([at((700, 100, 740, 200), 'Pedestrian')], [('Pedestrian', (700, 100, 740, 151), 0.9)])] * 50
    scores = evaluate(scene)['Pedestrian']
    assert scores['R40'] == scores['R11'] == [100, 100, 100]


def test_controlled_case_27_undetected_class_is_zero_with_a_warning():
    with pytest.warns(UserWarning, match='Cyclist: no detections') as caught:
        scores = kitti_eval(*as_frames([([CAR, at(B, 'Cyclist')], [FOUND_A])] * 50), classes=('Car', 'Cyclist'))
    assert scores['Cyclist'] == {'R40': [0, 0, 0], 'R11': [0, 0, 0], 'num_gt': [50, 50, 50]}
    assert len(caught) == 1


def test_controlled_case_28_class_that_only_starts_left_of_the_image_is_zero_with_a_warning():
    scene = [([at((0, 100, 100, 200))], [('Car', (-5, 100, 100, 200), 0.9)])] * 50
    with pytest.warns(UserWarning, match='Car: all detections have x1 < 0'):
        scores = kitti_eval(*as_frames(scene), classes=['Car'])
    assert scores['Car']['R40'] == [0, 0, 0]
    scene[7] = (scene[7][0], [*scene[7][1], ('Car', (0, 300, 10, 310), 0.1)])
    assert evaluate(scene, classes=['Car'])['Car']['R40'] == [100, 100, 100]


def test_class_without_ground_truth_warns_and_leaves_the_mean_alone():
    with pytest.warns(UserWarning, match='no ground truth'):
        scores = kitti_eval(*as_frames([([CAR], [FOUND_A])] * 50))
    assert scores['Cyclist']['num_gt'] == [0, 0, 0]
    assert mean_ap(scores) == {'R40': [100, 100, 100], 'R11': [100, 100, 100]}


def test_mean_is_over_classes_with_ground_truth_at_that_level():
    scores = {
        'Car': {'R40': [80, 60, 40], 'R11': [8, 6, 4], 'num_gt': [9, 9, 9]},
        'Cyclist': {'R40': [0, 20, 20], 'R11': [0, 2, 2], 'num_gt': [0, 1, 1]},
    }
    assert mean_ap(scores) == {'R40': [80, 40, 30], 'R11': [8, 4, 3]}


def random_box(rng, grid):
    x, y = rng.randrange(-20, 280, grid), rng.randrange(0, 150, grid)
    width, height = (
        rng.choice([0, 20, 30, 40, 60, 100]),
        rng.choice([24, 24.5, 25, 25.5, 26, 39, 40, 40.5, 41, 60, 100]),
    )
    return float(x), float(y), float(x + width), float(y + height)


def random_scene(seed):
    """Crowded frames on a coarse grid: ties of score and overlap, boxes at the limits, all types."""
    rng = random.Random(seed)
    grid, scene = rng.choice([5, 20, 50]), []
    for _ in range(rng.randint(1, 20)):
        kinds = rng.choice([TYPES, ('Car', 'Van', 'Car', 'DontCare', 'Pedestrian')])
        truths = [
            at(random_box(rng, grid), rng.choice(kinds), rng.choice([0, 0, 0.15, 0.3, 0.5, 0.51]), rng.randrange(4))
            for _ in range(rng.randrange(9))
        ]
        founds = [(rng.choice(TYPES), random_box(rng, grid), rng.choice([0.1, 0.5, rng.random()])) for _ in range(3)]
        for kind, _, _, box in truths:
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                moved = [value + rng.choice([0, 0, 0, 1, 5, -0.5]) for value in box]
                moved = [*moved[:2], max(moved[0], moved[2]), max(moved[1], moved[3])]
                kind = {'Van': 'Car', 'DontCare': 'Car'}.get(kind, kind)
                founds.append((kind, moved, rng.choice([0.1, 0.2, 0.9, rng.random()])))
        rng.shuffle(founds)
        scene.append((truths, founds))
    return scene


def assert_equals_loops(scene, limit=None):
    limits = None if limit is None else dict.fromkeys(('Car', 'Pedestrian', 'Cyclist'), limit)
    result = evaluate(scene, min_overlaps=limits)
    for name, scores in result.items():
        expected = [naive_eval(scene, name, level, limit) for level in range(3)]
        assert scores['R40'] == pytest.approx([values[0] for values in expected], abs=1e-9)
        assert scores['R11'] == pytest.approx([values[1] for values in expected], abs=1e-9)
        assert scores['num_gt'] == [values[2] for values in expected]
    return result


@pytest.mark.parametrize('seed', range(60))
def test_random_scenes_equal_the_loops(seed):
    assert_equals_loops(random_scene(seed), limit=(None, 0.5, 0.1)[seed % 3])


def test_random_scenes_are_not_all_zero():
    values = [evaluate(random_scene(seed))['Car']['R11'][2] for seed in range(20)]
    assert sum(value > 0 for value in values) > 10


side = st.sampled_from([0, 10, 24.5, 25, 26, 40, 41, 80])
box = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)),
    st.sampled_from([-5, 0, 10, 20]),
    st.sampled_from([0, 5, 20]),
    side,
    side,
)
truth = st.tuples(
    st.sampled_from(['Car', 'car', 'Van', 'Pedestrian', 'Person_sitting', 'DontCare', 'Truck']),
    st.sampled_from([0, 0.15, 0.3, 0.6]),
    st.integers(0, 3),
    box,
)
found = st.tuples(st.sampled_from(['Car', 'CAR', 'Pedestrian', 'Tram']), box, st.sampled_from([-2.0, 0.1, 0.5, 9.0]))
scenes = st.lists(st.tuples(st.lists(truth, max_size=6), st.lists(found, max_size=8)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(scenes)
def test_any_scene_equals_the_loops(scene):
    assert_equals_loops(scene)


@settings(max_examples=60, deadline=None)
@given(scenes, st.randoms())
def test_order_of_frames_and_monotone_change_of_scores_do_not_matter(scene, rng):
    expected = evaluate(scene)
    moved = [(truths, [(kind, area, 3 * score + 1) for kind, area, score in founds]) for truths, founds in scene]
    rng.shuffle(moved)
    assert evaluate(moved) == expected


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_ap_is_a_percentage(scene):
    for scores in evaluate(scene).values():
        assert all(0 <= value <= 100 + 1e-9 for value in (*scores['R40'], *scores['R11']))


def test_objects_of_crowded_frames_equal_the_loops_when_pairs_come_in_blocks(monkeypatch):
    monkeypatch.setattr('mmkd.evaluation.kitti_matching.MAX_PAIRS', 7)
    for seed in range(5):
        assert_equals_loops(random_scene(seed))


def test_average_precision_counts_nothing_over_nothing_as_zero():
    r40, r11 = average_precision(np.array([0, 0]), np.array([0, 2]))
    assert (r40, r11) == (0, 0)


def test_point_zero_enters_r11_only():
    assert average_precision(np.array([1]), np.array([0])) == pytest.approx((0, 100 / 11))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'classes': ['Bus']}, "unknown KITTI type 'Bus'"),
        ({'classes': ['Tram']}, "'Tram' has no official overlap"),
        ({'classes': ['Car'], 'min_overlaps': {'Cyclist': 0.5}}, r"min_overlaps names \['Cyclist'\]"),
        ({'min_overlaps': {'Car': 1.0}}, r'overlap of Car must be in \[0, 1\), got 1.0'),
    ],
)
def test_refuses_unusable_options(options, message):
    with pytest.raises(ValueError, match=message):
        kitti_eval(*as_frames([([CAR], [FOUND_A])]), **options)


def test_refuses_different_frames():
    truths, founds = as_frames([([CAR], [FOUND_A])] * 3)
    with pytest.raises(ValueError, match='same frames in the same order, got 3 and 2 frames'):
        kitti_eval(truths, founds[:2])


def test_other_type_can_be_evaluated_with_an_overlap_of_its_own():
    scene = [([at(A, 'Tram')], [('Tram', A, 0.5)])] * 41
    assert evaluate(scene, classes=['Tram'], min_overlaps={'Tram': 0.7})['Tram']['R40'] == [100, 100, 100]


def test_a_class_in_another_case_is_the_same_class():
    scene = [([CAR, ('Van', 0, 0, B)], [FOUND_A, ('Car', B, 0.95)])] * 50
    assert evaluate(scene, classes=['car']) == evaluate(scene, classes=['Car'])
    assert evaluate(scene, classes=['car'], min_overlaps={'CAR': 0.7}) == evaluate(scene, classes=['Car'])
    with pytest.raises(ValueError, match="'Car' is named twice"):
        evaluate(scene, classes=['Car', 'car'])


def test_few_boxes_are_told_also_where_a_level_has_none():
    result = {'Car': {'R40': [0, 1, 1], 'R11': [0, 1, 1], 'num_gt': [0, 20, 60]}}
    assert 'fewer than 41 boxes cap the AP below 100: Car' in format_table(result)
    result['Car']['num_gt'] = [0, 41, 60]
    assert 'fewer' not in format_table(result)
