"""`check_config`: what it leaves to the user, where it measures, and which weights it starts from."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.engine import config_step
from mmkd.engine.config_check import initialise_without_download
from mmkd.engine.config_rules import both_sides_the_same
from mmkd.engine.config_step import measuring_device
from mmkd.testing.toy_detectors import toy_detector

METHODS = Path(__file__).parents[2] / 'configs' / '_base_' / 'methods'


def beside_a_teacher(name: str) -> Config:
    """A method's distiller in an algorithm that has a teacher."""
    distiller = Config.fromfile(METHODS / f'{name}.py').distiller
    return Config(
        dict(model=dict(type='mmkd.TeacherStudentDistill', architecture={}, teacher='t.py', distiller=distiller))
    )


def test_levels_that_teach_each_other_may_stand_beside_a_teacher() -> None:
    cfg = beside_a_teacher('mssd')
    assert list(both_sides_the_same(cfg)) == []
    entries = cfg.model.distiller.loss_forward_mappings.loss_mssd
    entries.preds_T.connector = entries.preds_S.connector
    assert 'both come from the student' in next(both_sides_the_same(cfg))
    del entries.preds_T['connector']
    assert 'both come from the student' in next(both_sides_the_same(cfg))


def test_steps_are_taken_on_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_step, 'gpu_of_this_process', lambda: torch.device('cuda', 1))
    assert measuring_device() == torch.device('cuda', 1)
    monkeypatch.setattr(config_step, 'gpu_of_this_process', lambda: None)
    assert measuring_device() == torch.device('cpu')


def test_a_pretrained_backbone_on_this_machine_is_loaded(tmp_path: Path) -> None:
    cfg = toy_detector('retinanet', width=8, channels=16, convs=1)
    source = MODELS.build(copy.deepcopy(cfg)).backbone
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'backbone.pth')
    for name, loaded in ((str(tmp_path / 'backbone.pth'), True), ('https://nowhere.invalid/backbone.pth', False)):
        cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=name)
        model = MODELS.build(copy.deepcopy(cfg))
        initialise_without_download(model)
        same = torch.equal(model.backbone.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
        assert same is loaded
