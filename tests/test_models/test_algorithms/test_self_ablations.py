"""Every line of the ablation grids in the READMEs of the self-distillation methods changes the config and runs."""

import argparse
import copy

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS

from mmkd.testing.methods import config_root

from .conftest import batch, losses_of, small

LEAVES = {'mssd': 'mssd_retinanet_r50_fpn_1x_coco.py', 'frskd': 'frskd_retinanet_r50_fpn_1x_coco.py'}


def rows() -> list[tuple[str, str]]:
    return [
        (name, line.removeprefix('--cfg-options '))
        for name in LEAVES
        for line in (config_root() / name / 'README.md').read_text().splitlines()
        if line.startswith('--cfg-options')
    ]


def test_there_are_rows():
    assert {name for name, _ in rows()} == set(LEAVES) and len(rows()) >= 12


@pytest.mark.parametrize(('name', 'options'), rows())
def test_row_changes_the_config_and_takes_a_step(name, options):
    cfg = Config.fromfile(config_root() / name / LEAVES[name])
    before = copy.deepcopy(cfg.model.to_dict())
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)
    assert cfg.model.to_dict() != before
    cfg.model.architecture = small('retinanet')
    cfg.model.distiller.pop('schedules')
    model = MODELS.build(cfg.model)
    model.init_weights()
    total, log = model.parse_losses(losses_of(model, batch()))
    total.backward()
    assert torch.isfinite(total) and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert any(name.startswith('distill.') for name in log)
