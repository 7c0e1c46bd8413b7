"""`tools/check_config.py`: a right configuration passes, and every planted mistake is named."""

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from planted_mistakes import HEAD, LOSS, MAPPING, TRAIN, TRAINING, Case, put
from torch import Tensor, nn

from mmkd.engine.command_line import run_command
from mmkd.engine.config_check import check_config
from mmkd.engine.preflight_data import dataset_classes
from mmkd.models.losses.attention_map_loss import AttentionMapLoss
from mmkd.testing.methods import distilled_model
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.toy_run import ToyRun, make_toy_run, neck_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'))


def other_teacher(**options: Any) -> Any:
    """A teacher given as a dictionary, changed, with weights of its own."""

    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        teacher = Config.fromfile(str(toy.teacher))
        teacher.merge_from_dict({f'model.{key.replace("__", ".")}': value for key, value in options.items()})
        cfg.model.teacher = copy.deepcopy(teacher.model)
        torch.save(dict(state_dict=MODELS.build(teacher.model).state_dict()), folder / 'own.pth')
        cfg.model.teacher_ckpt = str(folder / 'own.pth')

    return change


def teacher_with_other_order(cfg: Config, toy: ToyRun, folder: Path) -> None:
    teacher = Config.fromfile(str(toy.teacher))
    classes = tuple(reversed(cfg.train_dataloader.dataset.metainfo.classes))
    teacher.train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
    teacher.dump(folder / 'other_order.py')
    cfg.model.teacher = str(folder / 'other_order.py')


def metainfo_in_another_order(cfg: Config, toy: ToyRun, folder: Path) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo.classes = tuple(reversed(loader.dataset.metainfo.classes))


def both(*changes: Any) -> Any:
    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        for one in changes:
            one(cfg, toy, folder)

    return change


def recorded(source: str, loss: dict | None = None) -> Any:
    """Records one layer on both sides, a single map, without connector."""
    entries = {f'model.distiller.{side}_recorders.neck.source': source for side in ('student', 'teacher')}

    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        cfg.merge_from_dict(entries)
        distiller = cfg.model.distiller
        distiller.connectors = {}
        distiller.distill_losses = dict(loss_kd=loss or dict(type='mmkd.NormalizedLpLoss', p=2))
        distiller.loss_forward_mappings = dict(loss_kd=dict(preds_S=neck_source(True), preds_T=neck_source(False)))

    return change


def partly_loaded(keys: str) -> Any:
    """A teacher checkpoint of which only these keys are its own."""

    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
        state = {k if k.startswith(keys) else f'other.{k}': v for k, v in state.items()}
        torch.save(dict(state_dict=state), folder / 'part.pth')
        cfg.model.teacher_ckpt, cfg.model.teacher_strict = str(folder / 'part.pth'), False

    return change


def starts_from(prefix: str) -> Any:
    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
        torch.save(dict(state_dict={prefix + k: v for k, v in state.items()}), folder / 'start.pth')
        cfg.load_from = str(folder / 'start.pth')

    return change


def broken_image(cfg: Config, toy: ToyRun, folder: Path) -> None:
    source = Path(cfg.train_dataloader.dataset.data_prefix.img)
    (folder / 'images').mkdir()
    for image in source.iterdir():
        (folder / 'images' / image.name).write_bytes(b'not a picture')
    cfg.train_dataloader.dataset.data_prefix.img = str(folder / 'images')


def without_step(name: str) -> Any:
    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        pipeline = cfg.train_dataloader.dataset.pipeline
        cfg.train_dataloader.dataset.pipeline = [step for step in pipeline if step.type != name]

    return change


def method_file(name: str) -> Any:
    """The distiller of a shipped file, under whatever algorithm there is."""

    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        cfg.model.distiller = Config.fromfile(ROOT / 'configs' / '_base_' / 'methods' / f'{name}.py').distiller

    return change


def unused_stage(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.model.architecture.backbone.out_indices = (0, 1, 2)
    cfg.model.architecture.neck.in_channels = [8, 16, 32]


CONV = dict(type='mmkd.ConvConnector')
PROBLEMS: dict[str, Case] = {
    'schedule after the end': Case(put('model.distiller.schedules', dict(loss_kd=dict(begin=5))), ('ends at 1', 'kd')),
    'connector on the side of the teacher': Case(
        both(
            put('model.distiller.connectors', dict(adapt=dict(type='mmkd.PyramidConnector', connector=CONV))),
            put(f'{MAPPING}.preds_S', dict(_delete_=True, **neck_source(True))),
            put(f'{MAPPING}.preds_T', dict(_delete_=True, **neck_source(False, connector='adapt'))),
        ),
        ("The connector 'adapt' gets no gradient",),
    ),
    'classes in another order': Case(
        put('val_dataloader.dataset.metainfo', dict(classes=('square', 'circle', 'triangle', 'cross'))),
        ('validation set has the classes in another order',),
    ),
    'evaluator of another set': Case(
        lambda cfg, toy, folder: put('val_evaluator.ann_file', str(toy.data / 'annotations/train.json'))(
            cfg, toy, folder
        ),
        ('val_evaluator reads', 'train.json', 'AP would be of other images'),
    ),
    'custom_keys of MMRazor': Case(
        put('optim_wrapper.paramwise_cfg.custom_keys', {'architecture.backbone': dict(lr_mult=0.1)}),
        ('custom_keys.architecture.backbone matches nothing', '(backbone)'),
    ),
    'a runner without hooks of the model': Case(
        put('runner_type', 'FlexibleRunner'), ("runner_type='FlexibleRunner' is no subclass",)
    ),
    'a wrapper other than DDP': Case(
        put('model_wrapper_cfg', dict(type='MMFullyShardedDataParallel')),
        ("model_wrapper_cfg.type='MMFullyShardedDataParallel' is no Dist",),
    ),
    "a preprocessor beside the student's own": Case(
        put('model.data_preprocessor', dict(type='DetDataPreprocessor', mean=[0] * 3, std=[1] * 3)),
        ("model.data_preprocessor differs from the student's own",),
    ),
    'classes that a recorded teacher numbers otherwise': Case(
        both(
            teacher_with_other_order,
            recorded('bbox_head.retina_cls'),
            put('model.distiller.connectors', dict(adapt=dict(type='mmkd.ConvConnector'))),
            put(f'{MAPPING}.preds_S.connector', 'adapt'),
        ),
        ("teacher's configuration numbers the classes otherwise", 'bbox_head.retina_cls'),
    ),
    'learning rate of 0': Case(put('optim_wrapper.optimizer.lr', 0.0), ('optimizer.lr is 0.0',)),
    'learning rate infinite': Case(put('optim_wrapper.optimizer.lr', float('inf')), ('optimizer.lr is inf',)),
    'both sides the student': Case(put(f'{MAPPING}.preds_T', neck_source(True)), ('both come from the student',)),
    'both sides the teacher': Case(
        put(f'{MAPPING}.preds_S', dict(_delete_=True, **neck_source(False))), ('both come from the teacher',)
    ),
    'sides swapped': Case(
        both(put(f'{MAPPING}.preds_S.from_student', False), put(f'{MAPPING}.preds_T.from_student', True)),
        ('preds_S comes from the teacher',),
    ),
    'frskd with a teacher': Case(
        method_file('frskd'),
        ('loss_frskd_at is of frskd, which grows its own teacher', 'mmkd.SelfTeacherDistill'),
    ),
    'training set empty': Case(put(f'{TRAIN}.filter_cfg.min_size', 9999), ('empty after filtering', 'filter_cfg')),
    'pipeline without annotations': Case(without_step('LoadAnnotations'), ('first training step fails',)),
    'pipeline without packing': Case(without_step('PackDetInputs'), ('must end with PackDetInputs',)),
    'image that is no image': Case(broken_image, ('pipeline fails on', 'train_00001.png')),
    'unknown transform': Case(
        lambda cfg, toy, folder: cfg[TRAIN.split('.')[0]].dataset.pipeline[3].update(type='RandomFlipp'),
        ("'RandomFlipp'", 'RandomFlip'),
    ),
    'frozen layer': Case(
        both(recorded('backbone.layer1'), put('model.architecture.backbone.frozen_stages', 1)),
        ('distill.loss_kd gives the student no gradient',),
    ),
    'head recorded, other classes': Case(
        both(
            other_teacher(bbox_head__num_classes=7),
            recorded('bbox_head.retina_cls'),
            put('model.distiller.connectors', dict(adapt=dict(type='mmkd.ConvConnector'))),
            put(f'{MAPPING}.preds_S.connector', 'adapt'),
        ),
        ('teacher predicts 7 classes, the data set has 4', 'bbox_head.retina_cls'),
    ),
    'teacher hardly filled': Case(partly_loaded('neck'), ('fills only', '% of the teacher')),
    'start from nothing': Case(starts_from('net.'), ('load_from', 'is of another network: it fills 0 of')),
    'start from MMRazor': Case(starts_from('architecture.'), ('load_from', 'MMRazor algorithm')),
    'loss is not finite': Case(put(f'{LOSS}.loss.loss_weight', float('inf')), ('distill.loss_kd_p3 is inf',)),
    'unknown mask': Case(put(f'{MAPPING}.mask', dict(mask='gauss')), ("unknown mask 'gauss'",)),
    'labels for a loss without': Case(put(f'{MAPPING}.labels', dict(recorder='labels')), ('labels',)),
    'rois of a one-stage student': Case(
        put(f'{MAPPING}.avg_factor', dict(recorder='rois')), ('samples no proposals in a single RoI head',)
    ),
    'connector with wrong channels': Case(
        put('model.distiller.connectors.adapt.connector.in_channels', 999), ('must have 999 channels, got 16',)
    ),
    'record that is not there': Case(put(f'{MAPPING}.preds_S.record_idx', 3), ('loss_kd.preds_S', 'record_idx is 3')),
    'element that is not there': Case(put(f'{MAPPING}.preds_S.data_idx', 9), ('loss_kd.preds_S', 'data_idx is 9')),
    'side left out': Case(put(f'{MAPPING}.preds_S.from_student', None), ('needs from_student=True or False',)),
    'distiller of another type': Case(
        put('model.distiller.type', 'mmkd.DetectionDistiler'), ('nearest: mmkd.DetectionDistiller',)
    ),
    'level weights of other count': Case(put(f'{LOSS}.level_weights', [1.0, 1.0]), ('same number of levels',)),
}
WARNINGS: dict[str, Case] = {
    'weight 0': Case(put(f'{LOSS}.loss.loss_weight', 0.0), ('loss_kd has loss_weight 0',)),
    'recorder without use': Case(
        put('model.distiller.student_recorders.spare', dict(type='ModuleOutputs', source='backbone')),
        ('student_recorders.spare is read by no loss',),
    ),
    'learning rate for another batch': Case(
        put('auto_scale_lr', dict(enable=False, base_batch_size=16)), ('meant for 16 images', 'with 8 processes')
    ),
    'milestones after the end': Case(
        put('param_scheduler', [dict(type='MultiStepLR', milestones=[16, 22], by_epoch=True)]), ('[16, 22]', '1 epoch')
    ),
    'never validated': Case(put('train_cfg.val_interval', 9), ('val_interval is 9',)),
    'validated on training data': Case(
        lambda cfg, toy, folder: (
            put('val_dataloader.dataset.ann_file', cfg.train_dataloader.dataset.ann_file)(cfg, toy, folder)
            or put('val_evaluator.ann_file', cfg.train_dataloader.dataset.ann_file)(cfg, toy, folder)
        ),
        ('Training and validation read the same annotations',),
    ),
    'find_unused_parameters': Case(put('find_unused_parameters', True), ('find_unused_parameters is not needed',)),
    'other normalisation': Case(other_teacher(data_preprocessor__mean=[0.0, 0.0, 0.0]), ('differ in mean',)),
    'other channel order': Case(other_teacher(data_preprocessor__bgr_to_rgb=False), ('differ in order',)),
    'other padding': Case(other_teacher(data_preprocessor__pad_size_divisor=128), ('padded to 128 px', 'pads to 32')),
    'teacher that numbers the classes otherwise': Case(teacher_with_other_order, ('numbers the classes otherwise',)),
    'metainfo in another order than the file': Case(
        metainfo_in_another_order, ('lists its categories as', 'numbers labels by the file')
    ),
    'teacher of other classes': Case(other_teacher(bbox_head__num_classes=7), ('teacher predicts 7 classes',)),
    'teacher partly filled': Case(partly_loaded(('backbone', 'neck')), ('of the teacher (teacher_strict=False)',)),
    'start from another student': Case(starts_from(''), ('load_from', 'tensors of the student')),
    'loss far too large': Case(put(f'{LOSS}.loss.loss_weight', 1e5), ('rules the training',)),
    'loss far too small': Case(put(f'{LOSS}.loss.loss_weight', 1e-6), ('next to no weight',)),
    'stage that nothing uses': Case(unused_stage, ('parameters of the student itself get no gradient', 'layer4')),
}


def test_classes_of_a_data_set_come_from_its_type_where_the_configuration_names_none() -> None:
    assert len(dataset_classes(ConfigDict(type='CocoDataset'))) == 80


def planted(case: Case, toy: ToyRun, folder: Path) -> Config:
    cfg = toy.load()
    cfg.work_dir = str(folder / 'run')
    case.change(cfg, toy, folder)
    return cfg


def test_a_right_configuration_passes_without_warning(toy: ToyRun, tmp_path: Path) -> None:
    report = check_config(planted(Case(lambda *_: None, ()), toy, tmp_path))
    assert (report.problems, report.warnings) == ([], [])
    assert report.exit_code(strict=True) == 0
    assert not list(tmp_path.iterdir())


RIGHT = [('retinanet', name) for name in ('ssim', 'mssd', 'ikd', 'mkd', 'frskd', 'frskd_dense', 'frskd_fit', 'mgd')]
RIGHT += [('yolox', 'frskd_dense'), ('yolox', 'ikd')]
RIGHT += [('faster-rcnn', name) for name in ('frskd_roi', 'ikd_roi', 'mkd_roi')]


@pytest.mark.parametrize(('family', 'method'), RIGHT)
def test_a_method_on_an_untrained_pair_passes_without_warning(
    family: str, method: str, toy: ToyRun, tmp_path: Path
) -> None:
    """Such as a self-teacher that begins as the student: its attention maps have nothing to teach at first."""
    student, teacher = (toy_detector(family, width=8, channels=channels, convs=1) for channels in (16, 24))
    torch.save(dict(state_dict=MODELS.build(copy.deepcopy(teacher)).state_dict()), tmp_path / 'teacher.pth')
    cfg = toy.load(work_dir=str(tmp_path / 'run'))
    given = dict(teacher=teacher, teacher_ckpt=str(tmp_path / 'teacher.pth'))
    cfg.model = ConfigDict(distilled_model(student, method, given))
    report = check_config(cfg)
    assert (report.problems, report.warnings) == ([], [])


@pytest.mark.parametrize('grown', ['detached', 'constant'])
def test_a_self_teacher_that_can_teach_nothing_is_a_problem(
    grown: str, toy: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after some training: its loss does not reach the student, or is always 0."""

    def nothing(self: nn.Module, preds_S: Tensor, preds_T: Tensor, *rest: Any) -> Tensor:
        return (preds_S.detach() - preds_T).square().sum() if grown == 'detached' else 0 * preds_S.sum()

    monkeypatch.setattr(AttentionMapLoss, 'forward', nothing)
    cfg = toy.load(work_dir=str(tmp_path / 'run'))
    cfg.model = ConfigDict(distilled_model(toy_detector('retinanet', width=8, channels=16, convs=1), 'frskd_dense'))
    (problem,) = check_config(cfg).problems
    assert problem.startswith('distill.loss_frskd_at gives the student no gradient')


def test_yoloxs_resizing_of_batches_is_no_problem(toy: ToyRun, tmp_path: Path) -> None:
    """`BatchSyncRandomResize` asks for the iteration, which a Runner would have told."""
    cfg = planted(Case(lambda *_: None, ()), toy, tmp_path)
    resize = dict(type='BatchSyncRandomResize', random_size_range=(64, 128), size_divisor=32)
    cfg.model.architecture.data_preprocessor.batch_augments = [resize]
    MessageHub._instance_dict.clear()
    report = check_config(cfg)
    assert report.problems == []


@pytest.mark.parametrize('name', [name for name, case in TRAINING.items() if not case.arguments and name != 'no model'])
def test_what_training_refuses_is_found_too(name: str, toy: ToyRun, tmp_path: Path) -> None:
    report = check_config(planted(TRAINING[name], toy, tmp_path))
    assert all(any(part in problem for problem in report.problems) for part in TRAINING[name].says), report.problems


@pytest.mark.parametrize('name', PROBLEMS)
def test_problem_is_named(name: str, toy: ToyRun, tmp_path: Path) -> None:
    report = check_config(planted(PROBLEMS[name], toy, tmp_path))
    assert all(any(part in problem for problem in report.problems) for part in PROBLEMS[name].says), report.problems
    assert report.exit_code() == 1


@pytest.mark.parametrize('name', WARNINGS)
def test_warning_is_given(name: str, toy: ToyRun, tmp_path: Path) -> None:
    report = check_config(planted(WARNINGS[name], toy, tmp_path))
    assert all(any(part in text for text in report.warnings) for part in WARNINGS[name].says), report.warnings
    assert report.exit_code(strict=True) == 1


def test_stock_algorithm_gives_a_warning(toy: ToyRun, tmp_path: Path) -> None:
    cfg = planted(Case(put('model.type', 'mmrazor.SingleTeacherDistill'), ()), toy, tmp_path)
    assert any("MMRazor's own" in text for text in check_config(cfg).warnings)


def test_every_loss_is_on_in_the_measured_step_whatever_its_schedule(toy: ToyRun, tmp_path: Path) -> None:
    cfg = planted(
        Case(put('model.distiller.schedules', dict(loss_kd=dict(begin=1, by_epoch=False))), ()), toy, tmp_path
    )
    report = check_config(cfg)
    losses = next(rows for title, _, rows in report.tables if title.startswith('Losses of this image'))
    assert all(float(norm) > 0 for _, _, norm in losses)


def test_the_tool_prints_the_tables_and_ends_with_the_exit_code(
    toy: ToyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location('tool_check_config', ROOT / 'tools/check_config.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['check_config.py', str(toy.config)])
    run_command(tool.main)
    said = capsys.readouterr().out
    for part in ('8 16 32 64 128', '24 24 24 24 24', '32x48', 'ConvConnector, 2040 parameters', '100.0 %', 'distilled'):
        assert part in said
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--cfg-options', f'{HEAD}.num_classes=7'])
    with pytest.raises(SystemExit, match='1'):
        run_command(tool.main)
    said = capsys.readouterr().out
    assert 'num_classes is 7' in said
    assert '1 problem, 0 warnings.' in said
