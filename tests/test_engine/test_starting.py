"""How a training starts: options that do something, `--resume` in a first start, and what an error later on shows."""

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmkd.engine.command_line import run_command
from mmkd.engine.config_rules import (
    classes_in_another_order,
    evaluator_of_another_set,
    other_classes_in_validation,
    rate_without_scaling,
)
from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.engine.preflight import check_options
from mmkd.engine.preflight_data import dataset_classes
from mmkd.engine.student_config import student_config
from mmkd.models.algorithms.model_config import detected_classes

YOLOX = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'


@HOOKS.register_module()
class FailsAtIteration(Hook):
    """Fails like a user's code, before the first step or later."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if runner.iter == self.at:
            raise KeyError('of my own')


def test_a_first_start_with_resume_keeps_its_start(tmp_path: Path) -> None:
    cfg = Config(dict(model=dict(type='RetinaNet'), load_from='start.pth'))
    prepare_training(cfg, config_name='x.py', work_dir=str(tmp_path), resume='auto')
    assert not cfg.get('resume') and cfg.load_from == 'start.pth'
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    prepare_training(cfg, config_name='x.py', work_dir=str(tmp_path), resume='auto')
    assert cfg.resume and cfg.load_from is None


@pytest.mark.parametrize(('at', 'shown'), [(0, False), (2, True)])
def test_an_error_behind_the_first_steps_shows_where_it_came_from(at, shown, distill_config, run, tmp_path, capsys):
    cfg = distill_config(epochs=1)

    def start() -> None:
        prepare_training(cfg, config_name='test', work_dir=str(tmp_path / 'run'))
        cfg.experiment_name = f'failing{at}'
        cfg.custom_hooks = [dict(type='FailsAtIteration', at=at)]
        train(cfg)

    with pytest.raises(KeyError if shown else SystemExit):
        run_command(start)
    (log,) = (tmp_path / 'run').rglob('*.log')
    assert ('Traceback' in log.read_text()) == shown
    assert ('ERROR (KeyError)' in capsys.readouterr().err) == (not shown)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(max_epochs=12), r'only helped to write the configuration.* made of it: train_cfg\.max_epochs\.'),
        (dict(base_lr=1e-4), 'only helped to write .*optim_wrapper.optimizer.lr'),
        ({'train_pipeline.0.type': 'X'}, 'only helped to write'),
        (dict(max_epoch=12), "nothing reads 'max_epoch'"),
    ],
)
def test_an_override_that_nothing_reads_any_more_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(YOLOX, options)


def test_overrides_that_something_reads_are_taken() -> None:
    options = {
        'train_cfg.max_epochs': 12,
        'auto_scale_lr.base_batch_size': 32,
        'tta_model.type': 'X',
        'data_root': 'd/',
    }
    check_options(load_config(YOLOX), options)


def test_accumulated_forwards_count_where_the_rate_is_scaled() -> None:
    cfg = Config(dict(model=dict(type='RetinaNet'), optim_wrapper=dict(accumulative_counts=8)))
    cfg.auto_scale_lr = dict(base_batch_size=16)
    cfg.train_dataloader = dict(batch_size=2)
    assert list(rate_without_scaling(cfg)) == []
    for _ in range(2):  # also where the configuration of a run is run again
        prepare_training(cfg, config_name='x.py', auto_scale_lr=True)
        assert cfg.auto_scale_lr.base_batch_size == 2 and cfg.auto_scale_lr.enable
    cfg.optim_wrapper.accumulative_counts = 4
    cfg.auto_scale_lr = dict(base_batch_size=16)
    assert 'meant for 16 images a step; 8 a process' in next(rate_without_scaling(cfg))


def test_classes_in_a_file_and_types_without_any_are_read_as_mmengine_does(tmp_path: Path) -> None:
    (tmp_path / 'classes.txt').write_text('a\nb\nc\n')
    named = [str(tmp_path / 'classes.txt'), 'car', ('x', 'y')]
    sets = [Config(dict(type='CocoDataset', metainfo=dict(classes=one))) for one in named]
    assert [dataset_classes(one) for one in sets] == [('a', 'b', 'c'), ('car',), ('x', 'y')]
    assert dataset_classes(Config(dict(type='V3DetDataset'))) == ()


def test_heads_of_a_panoptic_set_predict_its_things() -> None:
    assert len(dataset_classes(Config(dict(type='CocoPanopticDataset')))) == 80
    assert detected_classes(dict(classes=('a', 'b', 'sky'), thing_classes=('a', 'b'))) == ('a', 'b')
    assert detected_classes(dict(classes=('car',), thing_classes=('a', 'b'))) == ('car',), 'of its type, not its own'


def test_what_mmdetections_own_configurations_do_is_no_problem(tmp_path: Path) -> None:
    """Panoptic sets are scored by two files, trackers validate on more classes, open-vocabulary students on others."""
    own, other = str(tmp_path / 'panoptic.json'), str(tmp_path / 'instances.json')
    cfg = Config(dict(model=dict(type='MaskFormer'), val_dataloader=dict(dataset=dict(type='X', ann_file=own))))
    cfg.val_evaluator = [dict(type='CocoPanopticMetric', ann_file=own), dict(type='CocoMetric', ann_file=other)]
    assert list(evaluator_of_another_set(cfg)) == []
    cfg.val_evaluator.pop(0)
    assert len(list(evaluator_of_another_set(cfg))) == 1
    sets = [dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=names))) for names in (('a', 'b'), ('a', 'c'))]
    cfg = Config(dict(model=dict(type='FasterRCNN'), train_dataloader=sets[0], val_dataloader=sets[1]))
    assert list(classes_in_another_order(cfg)) == [] and len(list(other_classes_in_validation(cfg))) == 1
    cfg.model.language_model = dict(type='BertModel')
    assert list(other_classes_in_validation(cfg)) == []
    cfg.val_dataloader.dataset.metainfo.classes = ('b', 'a')
    assert len(list(classes_in_another_order(cfg))) == 1


def test_the_plain_student_imports_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, transform = type(sys)('my_loss'), type(sys)('my_data')
    loss.CosineLoss = type('CosineLoss', (), dict(__module__='my_loss'))
    transform.Blur = type('Blur', (), dict(__module__='my_data'))
    for module in (loss, transform):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def plain(imports: object) -> dict:
        algorithm = dict(type='mmkd.TeacherStudentDistill', architecture=dict(type='RetinaNet'))
        algorithm['distiller'] = dict(type='mmkd.DetectionDistiller', distill_losses=dict(a=dict(type='CosineLoss')))
        data = dict(dataset=dict(pipeline=[dict(type='Blur')]))
        cfg = dict(model=algorithm, custom_imports=dict(imports=imports), custom_hooks=None, train_dataloader=data)
        return student_config(Config(cfg)).get('custom_imports', {})

    assert plain(['my_loss', 'my_data', 'not.loaded', 'mmkd.compat']) == dict(imports=['my_data', 'not.loaded'])
    assert plain('my_loss') == plain(None) == {}
    assert plain('my_data') == dict(imports=['my_data'])


def test_the_plain_students_config_is_of_no_run(distill_config, run, tmp_path) -> None:
    cfg = distill_config(epochs=1)
    run(cfg, tmp_path / 'run')
    plain = Config.fromfile(tmp_path / 'run' / 'student.py')
    assert 'work_dir' not in plain and 'launcher' not in plain
    assert plain.load_from is None and plain.resume is False
