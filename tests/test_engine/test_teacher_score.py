"""The teacher's score on the whole validation set, measured once, beside every score of the student."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from mmkd.compat import load_checkpoint_file as load
from mmkd.engine.hooks import teacher_check_hook
from mmkd.engine.hooks.teacher_check_hook import TeacherCheckHook, UselessTeacherError
from mmkd.engine.small_evaluation import FirstImages, evaluate_on, first_images
from mmkd.engine.subjects import detect, image_pipeline, subjects_of
from mmkd.testing.toy_data import TOY_CLASSES


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


class Stage(SimpleNamespace):
    """What the check needs of a Runner; a real one spends its start on printing the configuration."""

    build_evaluator = Runner.build_evaluator


@pytest.fixture
def check(distill_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Stage]]:
    """Check a random teacher that gives boxes, before a training; returns what is said, and the stage."""

    def start(change: Callable[[Config], None], **options: object) -> tuple[str, Stage]:
        said: list[str] = []
        monkeypatch.setattr(teacher_check_hook, 'print_log', lambda text, *_, **__: said.append(text))
        cfg = distill_config()
        cfg.model.teacher.test_cfg.update(score_thr=0.0)
        change(cfg)
        if options:
            cfg.model.teacher = dict(config=cfg.model.teacher, **options)
        stage = Stage(cfg=cfg, seed=0, iter=0, model=MODELS.build(cfg.model))
        stage.model._teacher.load()
        TeacherCheckHook(3).before_train(stage)
        return '\n'.join(said), stage

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

    said, stage = check(join)
    assert 'Teacher on 3 validation images: coco/bbox_mAP' in said
    loader = first_images(stage, 3)
    assert [loader.dataset.get_data_info(i)['img_id'] for i in range(3)] == [1, 2, 1]

    def each(cfg: Config) -> None:
        join(cfg)
        cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=[], dataset_prefixes=['a', 'b'])

    assert check(each)[0].startswith('The teacher is not checked: MultiDatasetsEvaluator')


class Joined(list):
    """What a wrapper of several data sets offers."""

    @property
    def datasets(self) -> list:
        return list(self)


@pytest.mark.parametrize('other', [('circle', 'square', 'triangle'), ('a', 'b', 'c', 'd')])
def test_a_teacher_is_scored_where_every_joined_set_has_as_many_classes(other: tuple[str, ...]) -> None:
    parts = [SimpleNamespace(metainfo=dict(classes=names)) for names in (TOY_CLASSES, other)]
    images = FirstImages(Joined(parts), 0)
    assert images.knows(4) == (len(other) == 4)
    assert images.knows(None)


def test_images_without_objects_judge_no_teacher(check, tmp_path):
    for threshold in (0.0, 2.0):  # detects something and nothing

        def change(cfg: Config, threshold: float = threshold) -> None:
            without_objects(tmp_path, cfg)
            cfg.model.teacher.test_cfg.score_thr = threshold

        assert 'could not be judged on these images: no object is annotated' in check(change)[0]


def test_objects_that_a_teacher_does_not_see_still_stop_the_run(check):
    with pytest.raises(UselessTeacherError, match='no detections'):
        check(lambda cfg: cfg.model.teacher.test_cfg.update(score_thr=2.0))


@pytest.mark.parametrize('format_only', [False, True])
def test_the_runs_own_prediction_files_are_left_alone(check, tmp_path, format_only):
    prefix = tmp_path / 'mine'
    said, _ = check(lambda cfg: cfg.val_evaluator.update(outfile_prefix=str(prefix), format_only=format_only))
    assert not list(tmp_path.glob('mine*'))
    assert ('could not be judged on these images: the metric gives no number' in said) == format_only


def half_weights(model: torch.nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in model.named_parameters() if value.dtype.itemsize == 2}


def test_a_cheap_teacher_is_scored_and_drawn_as_a_whole_detector(check):
    _, stage = check(lambda cfg: None, precision='bf16', fold_bn=True, channels_last=True)
    model, loader = stage.model, first_images(stage, 2)
    model._teacher.settle(torch.rand(1, 3, 64, 96), None)
    halves = half_weights(model.teacher)
    assert halves
    assert evaluate_on(stage, model.teacher, loader).boxes == 200
    (subject,) = subjects_of(loader.dataset, [0], Compose(image_pipeline(stage.cfg)))
    assert len(detect(model.teacher, subject).scores) == 100
    assert half_weights(model.teacher) == halves


def test_a_first_start_with_resume_still_checks_the_teacher(check):
    """As scripts do that Slurm may start again: `--resume` always, also where there is nothing yet."""
    _, stage = check(lambda cfg: None)
    stage._resume = True
    stage.model.teacher.test_cfg.score_thr = stage.model.teacher.bbox_head.test_cfg.score_thr = 1.0
    with pytest.raises(UselessTeacherError):
        TeacherCheckHook(3).before_train(stage)
    stage.iter = 4
    TeacherCheckHook(3).before_train(stage)  # a run that goes on was checked when it began


def test_the_whole_score_is_measured_by_a_resumed_run_that_does_not_know_it(check):
    _, stage = check(lambda cfg: None)
    stage.iter, stage.message_hub = 4, MessageHub.get_current_instance()
    TeacherCheckHook('all').before_train(stage)
    assert stage.message_hub.get_info(teacher_check_hook.TEACHER_SCORES)['coco/bbox_mAP'] >= 0


def test_a_teacher_that_numbers_the_classes_otherwise_is_not_scored(check, monkeypatch):
    said, stage = check(lambda cfg: None)
    assert 'Teacher on 3' in said
    other = dataclasses.replace(stage.model._teacher.source, classes=tuple(reversed(TOY_CLASSES)))
    stage.model._teacher.source = other
    lines = []
    monkeypatch.setattr(teacher_check_hook, 'print_log', lambda text, *_, **__: lines.append(text))
    TeacherCheckHook(3).before_train(stage)
    assert lines == ['The teacher has other classes than the data set; its accuracy is not measured.']
