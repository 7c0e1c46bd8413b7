"""The teacher's score on the whole validation set, measured once, beside every score of the student."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmkd.compat import load_checkpoint_file as load
from mmkd.engine.hooks.teacher_check_hook import TeacherCheckHook, UselessTeacherError
from mmkd.engine.small_evaluation import evaluate_on, first_images


def test_the_teachers_whole_score_stands_beside_the_students(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    for model in (cfg.model.architecture, cfg.model.teacher):
        model.test_cfg.score_thr = 0.0
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images='all')
    cfg.log_level = 'INFO'
    longer = copy.deepcopy(cfg)
    longer.train_cfg.max_epochs = 2
    run(cfg, tmp_path / 'run')
    checkpoint = str(tmp_path / 'run' / 'epoch_1.pth')
    score = load(checkpoint)['message_hub']['runtime_info']['mmkd_teacher_scores']['coco/bbox_mAP']
    assert score > 0
    run(longer, tmp_path / 'resumed', resume=checkpoint)
    for folder, measured in (('run', 1), ('resumed', 0)):
        log = next((tmp_path / folder).rglob('*.log')).read_text()
        assert log.count('Teacher on all validation images: ') == measured
        (line,) = [line for line in log.splitlines() if 'Student and teacher: ' in line]
        assert f' and {score:.3f} (' in line.split('coco/bbox_mAP ')[1]


@pytest.mark.parametrize('value', [-1, 'some'])
def test_a_wrong_number_of_images_for_the_teacher_is_refused(value):
    with pytest.raises(ValueError, match='num_images must be'):
        HOOKS.build(dict(type='mmkd.TeacherCheckHook', num_images=value))


@pytest.fixture
def check(distill_config: Callable[..., Config], tmp_path: Path) -> Callable[..., str]:
    """Check a random teacher that gives boxes, before a training; returns the log and the runner."""

    def start(change: Callable[[Config], None], images: int = 3, **teacher: object) -> tuple[str, Runner]:
        cfg = distill_config()
        for model in (cfg.model.architecture, cfg.model.teacher):
            model.test_cfg.score_thr = 0.0
        cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'INFO'
        change(cfg)
        if teacher:
            cfg.model.teacher = dict(config=cfg.model.teacher, **teacher)
        runner = Runner.from_cfg(cfg)
        runner.model._teacher.load()
        TeacherCheckHook(images).before_train(runner)
        return next((tmp_path / 'run').rglob('*.log')).read_text(), runner

    return start


def without_objects(folder: Path, cfg: Config) -> None:
    """Nobody drew a box in the validation images: COCO's numbers are all -1."""
    content = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    content['annotations'] = []
    (folder / 'empty.json').write_text(json.dumps(content))
    cfg.val_dataloader.dataset.ann_file = cfg.val_evaluator.ann_file = str(folder / 'empty.json')


def test_a_teacher_is_checked_on_several_joined_sets(check):
    def join(cfg: Config) -> None:
        one = cfg.val_dataloader.dataset
        cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[dict(one, indices=2), dict(one)])

    log, runner = check(join)
    assert 'Teacher on 3 validation images: coco/bbox_mAP' in log
    assert [first_images(runner, n).dataset[-1]['data_samples'].img_id for n in (1, 3)] == [1, 1]
    runner.cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=[], dataset_prefixes=['a', 'b'])
    TeacherCheckHook(3).before_train(runner)
    assert 'The teacher is not checked: MultiDatasetsEvaluator' in Path(runner.log_dir).glob('*.log').__next__().read_text()


@pytest.mark.parametrize(('blind', 'why'), [(False, 'no object is annotated'), (True, 'no object is annotated')])
def test_images_without_objects_judge_no_teacher(check, tmp_path, blind, why):
    def change(cfg: Config) -> None:
        without_objects(tmp_path, cfg)
        cfg.model.teacher.test_cfg.score_thr = 2.0 if blind else 0.0

    assert f'could not be judged on these images: {why}' in check(change)[0]


def test_objects_that_a_teacher_does_not_see_still_stop_the_run(check):
    with pytest.raises(UselessTeacherError, match='no detections'):
        check(lambda cfg: cfg.model.teacher.test_cfg.update(score_thr=2.0))


@pytest.mark.parametrize('format_only', [False, True])
def test_the_runs_own_prediction_files_are_left_alone(check, tmp_path, format_only):
    prefix = tmp_path / 'mine'
    log, _ = check(lambda cfg: cfg.val_evaluator.update(outfile_prefix=str(prefix), format_only=format_only))
    assert not list(tmp_path.glob('mine*'))
    assert ('could not be judged on these images: the metric gives no number' in log) == format_only


@pytest.mark.parametrize('options', [dict(precision='bf16'), dict(precision='bf16', fold_bn=True, channels_last=True)])
def test_a_cheap_teacher_is_scored_as_a_whole_detector(check, options):
    _, runner = check(lambda cfg: None, **options)
    model, loader = runner.model, first_images(runner, 2)
    plain = evaluate_on(runner, model.teacher, loader)
    model._teacher.settle(torch.rand(1, 3, 64, 96), None)
    halves = {name: value.data_ptr() for name, value in model.teacher.named_parameters() if value.dtype.itemsize == 2}
    assert halves
    assert evaluate_on(runner, model.teacher, loader).boxes == plain.boxes
    after = {name: value.data_ptr() for name, value in model.teacher.named_parameters() if value.dtype.itemsize == 2}
    assert after == halves
