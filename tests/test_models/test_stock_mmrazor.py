"""mmkd's losses and connectors inside an unchanged MMRazor: `SingleTeacherDistill` with `ConfigurableDistiller`.

There channels are numbers in the config, one connector and one loss a level or a `Pyramid*` for all.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.distillers import ConfigurableDistiller

from mmkd.testing.toy_detectors import toy_detector

ROOT = Path(__file__).resolve().parents[2]
STUDENT, TEACHER = 16, 24
LEVELS = 5
FROM_STUDENT = dict(from_student=True, recorder='neck')
FROM_TEACHER = dict(from_student=False, recorder='neck')


def pyramid_of(connector: dict) -> dict:
    return dict(
        type='mmkd.PyramidConnector',
        connector=connector,
        in_channels=(STUDENT,) * LEVELS,
        out_channels=(TEACHER,) * LEVELS,
    )


ADAPT = pyramid_of(dict(type='mmkd.ConvConnector'))
RESAMPLE = pyramid_of(dict(type='mmkd.FeatureResampler', seed=0))


def on_pyramid(loss: dict, connector: dict | list | None = ADAPT, *, name: str = 'loss') -> dict:
    student = FROM_STUDENT if connector is None else dict(FROM_STUDENT, connector='adapt')
    return dict(
        connectors={} if connector is None else dict(adapt=connector),
        distill_losses={name: dict(type='mmkd.PyramidLoss', loss=loss)},
        loss_forward_mappings={name: dict(preds_S=student, preds_T=FROM_TEACHER)},
    )


def between(loss: dict, student: dict, teacher: dict, *, taught_by_itself: bool = False) -> dict:
    """A loss of what two connectors give, one a side; both sides are the student's where it teaches itself."""
    return dict(
        connectors=dict(student=student, teacher=teacher),
        distill_losses=dict(loss=dict(type='mmkd.PyramidLoss', loss=loss)),
        loss_forward_mappings=dict(
            loss=dict(
                preds_S=dict(FROM_STUDENT, connector='student'),
                preds_T=dict(FROM_STUDENT if taught_by_itself else FROM_TEACHER, connector='teacher'),
            )
        ),
    )


def align(**options: Any) -> dict:
    """All levels of the student at once -> each of the teacher's."""
    return dict(
        type='mmkd.FeatureAlignment', in_channels=(STUDENT,) * LEVELS, out_channels=(TEACHER,) * LEVELS, **options
    )


def across(role: str) -> dict:
    return dict(type='mmkd.CrossScaleConnector', role=role, direction='both', in_channels=(STUDENT,) * LEVELS)


def of_teacher(connector: dict) -> dict:
    """On the teacher's side, so the other way round."""
    return dict(pyramid_of(connector), in_channels=(TEACHER,) * LEVELS, out_channels=(STUDENT,) * LEVELS)


def on_level(loss: dict, connector: dict, level: int = 1) -> dict:
    return dict(
        connectors=dict(adapt=connector),
        distill_losses=dict(loss=loss),
        loss_forward_mappings=dict(
            loss=dict(
                preds_S=dict(FROM_STUDENT, data_idx=level, connector='adapt'),
                preds_T=dict(FROM_TEACHER, data_idx=level),
            )
        ),
    )


ONE = dict(in_channels=STUDENT, out_channels=TEACHER)
CASES = {
    'ssim pyramid': on_pyramid(dict(type='mmkd.SSIMLoss', data_range=1.0)),
    'l1 pyramid': on_pyramid(dict(type='mmkd.NormalizedLpLoss', p=1)),
    'attention without connector': on_pyramid(dict(type='mmkd.AttentionMapLoss'), None),
    'masked loss behind resampling': on_pyramid(dict(type='mmkd.MaskedFeatureLoss'), RESAMPLE),
    'ssim on one level': on_level(dict(type='mmkd.SSIMLoss', data_range=1.0), dict(type='mmkd.ConvConnector', **ONE)),
    'mmrazor loss behind our connector': on_level(
        dict(type='ChannelWiseDivergence'), dict(type='mmkd.FeatureResampler', seed=0, **ONE)
    ),
    'our loss behind a mmrazor connector': on_level(
        dict(type='mmkd.SSIMLoss', data_range=1.0),
        dict(type='ConvModuleConnector', in_channel=STUDENT, out_channel=TEACHER),
    ),
    'gate over the cells': on_pyramid(
        dict(type='mmkd.NormalizedLpLoss', p=2), [ADAPT, pyramid_of(dict(type='mmkd.SpatialAttention'))]
    ),
    'alignment of a pyramid': on_pyramid(dict(type='mmkd.FeatureAlignmentLoss'), align()),
    'alignment of segments': on_pyramid(dict(type='mmkd.FeatureAlignmentLoss'), align(mode='segments', num_segments=2)),
    'levels that teach each other': between(
        dict(type='mmkd.MaskedFeatureLoss', normalize='none'),
        across('student'),
        across('teacher'),
        taught_by_itself=True,
    ),
    'guidance': between(
        dict(type='mmkd.GuidanceLoss'),
        pyramid_of(dict(type='mmkd.IntermediateGuidance')),
        of_teacher(dict(type='mmkd.IntermediateGuidance', reconstruct=True)),
    ),
    'exploration': between(
        dict(type='mmkd.ExplorationLoss'),
        pyramid_of(dict(type='mmkd.ExplorationCoder')),
        of_teacher(dict(type='mmkd.FactorAutoEncoder')),
    ),
    'relations of levels': on_pyramid(dict(type='mmkd.AttentionMapLoss'), None)
    | dict(
        distill_losses=dict(loss=dict(type='mmkd.FSPLoss')),
        loss_forward_mappings=dict(loss=dict(preds_S=dict(FROM_STUDENT, connector='adapt'), preds_T=FROM_TEACHER)),
        connectors=dict(adapt=ADAPT),
    ),
}


def stock_algorithm(parts: dict[str, Any]) -> SingleTeacherDistill:
    recorders = dict(neck=dict(type='ModuleOutputs', source='neck'))
    algorithm = ROOT_MODELS.build(
        dict(
            type='mmrazor.SingleTeacherDistill',
            architecture=dict(toy_detector('gfl', channels=STUDENT, convs=1), _scope_='mmdet'),
            teacher=dict(toy_detector('gfl', channels=TEACHER, convs=1), _scope_='mmdet'),
            distiller=dict(
                type='ConfigurableDistiller',
                _scope_='mmrazor',
                student_recorders=recorders,
                teacher_recorders=recorders,
                **parts,
            ),
        )
    )
    algorithm.train()
    return algorithm


def a_batch() -> dict:
    # 128 x 96 px: P7 is a single cell
    return demo_mm_inputs(2, image_shapes=[(3, 128, 96), (3, 96, 80)], num_classes=4)


@pytest.mark.parametrize('name', CASES)
def test_one_training_step_in_unchanged_mmrazor(name: str):
    with DefaultScope.overwrite_default_scope('mmrazor'):
        algorithm = stock_algorithm(CASES[name])
        assert type(algorithm) is SingleTeacherDistill
        assert type(algorithm.distiller) is ConfigurableDistiller
        optimizer = build_optim_wrapper(algorithm, dict(optimizer=dict(type='SGD', lr=0.01)))
        before = copy.deepcopy(algorithm.state_dict())
        logs = algorithm.train_step(a_batch(), optimizer)
    distilled = [value.detach() for key, value in logs.items() if key.startswith('distill.')]
    assert sum(distilled) > 0
    assert all(torch.isfinite(value).all() for value in logs.values())
    moved = {key for key, value in algorithm.named_parameters() if not torch.equal(value, before[key])}
    assert 'architecture.backbone.conv1.weight' in moved
    assert not any(key.startswith('teacher.') for key in moved)
    adapters = {key for key, _ in algorithm.named_parameters() if key.startswith('distiller.connectors.')}
    # A single cell (P7) that is masked or standardised away teaches nothing.
    assert {key for key in adapters if key.endswith('weight') and 'levels.4' not in key} <= moved


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (dict(type='mmkd.DecoupledLogitLoss', mode='sigmoid'), 'needs labels='),
        (dict(type='mmkd.SoftTargetLoss', mode='sigmoid'), 'needs labels='),
        (dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss', gate=True)), 'needs mask='),
    ],
)
def test_losses_that_need_what_mmrazors_distiller_cannot_give_say_so(loss: dict, message: str):
    parts = on_pyramid({}) | dict(distill_losses=dict(loss=loss))
    with DefaultScope.overwrite_default_scope('mmrazor'):
        algorithm = stock_algorithm(parts)
        data = algorithm.data_preprocessor(a_batch(), True)
        with pytest.raises(ValueError, match=message):
            algorithm.loss(data['inputs'], data['data_samples'])


FRESH = """
import sys
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
cfg = Config.fromfile(sys.argv[1])
cfg.model.teacher.pretrained = False  # no download
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
for part in (model, model.architecture, model.teacher, model.distiller):
    print(type(part).__module__.split('.')[0], type(part).__name__)
for part in (*model.distiller.connectors.values(), *model.distiller.distill_losses.values()):
    print(type(part).__module__.split('.')[0], type(part).__name__)
from mmdet.testing import demo_mm_inputs
data = model.data_preprocessor(demo_mm_inputs(2, image_shapes=[(3, 128, 96)] * 2, num_classes=4), True)
losses = model.loss(data['inputs'], data['data_samples'])
print({name: len(value) for name, value in losses.items() if name.startswith('distill.')})
print(all(value > 0 for value in losses['distill.loss_ssim']))
"""


def test_config_of_the_documentation_works_in_a_fresh_process(tmp_path: Path):
    """`custom_imports` alone makes MMRazor importable; everything else is MMRazor's."""
    page = (ROOT / 'docs/own_method.md').read_text(encoding='utf-8')
    name, text = re.search(r'```python\n# file: my/(\S*mmrazor\S*)\n(.*?)```', page, re.DOTALL).groups()
    assert "custom_imports = dict(imports=['mmkd.compat']" in text
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FRESH, name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-8:] == [
        'mmrazor SingleTeacherDistill',
        'mmdet RetinaNet',
        'mmdet RetinaNet',
        'mmrazor ConfigurableDistiller',
        'mmkd PyramidConnector',
        'mmkd PyramidLoss',
        "{'distill.loss_ssim': 5}",
        'True',
    ]


def test_loss_alone_reaches_student_and_connector_but_not_the_teacher():
    with DefaultScope.overwrite_default_scope('mmrazor'):
        algorithm = stock_algorithm(CASES['ssim pyramid'])
        data = algorithm.data_preprocessor(a_batch(), True)
        losses = algorithm.loss(data['inputs'], data['data_samples'])
        losses['distill.loss'] = sum(losses['distill.loss'])
        losses['distill.loss'].backward()
    assert algorithm.architecture.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in algorithm.distiller.connectors.parameters() if p.ndim == 4)
    assert all(p.grad is None for p in algorithm.teacher.parameters())
    assert all(p.grad is None for p in algorithm.architecture.bbox_head.parameters())


def test_mapping_key_that_the_loss_does_not_have_is_refused_by_mmrazor():
    parts = on_pyramid(dict(type='mmkd.SSIMLoss', data_range=1.0), None)
    parts['loss_forward_mappings'] = dict(loss=dict(s_feature=FROM_STUDENT, preds_T=FROM_TEACHER))
    with DefaultScope.overwrite_default_scope('mmrazor'), pytest.raises(AssertionError, match='s_feature'):
        stock_algorithm(parts)


def test_mmrazors_losses_that_results_are_compared_with_have_their_golden_numbers():
    """From the project's notes: one generator, logits first, then student maps of three sizes, then the teacher's."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        torch.randn(8, 21, generator=generator)
    torch.randint(0, 21, (8,), generator=generator)
    student, teacher = ([torch.randn(2, 8, h, h, generator=generator) for h in (32, 16, 8)] for _ in range(2))
    found = {
        kind: ROOT_MODELS.build(dict(type=f'mmrazor.{kind}', loss_weight=1, **more))(student[0], teacher[0]).item()
        for kind, more in (('PKDLoss', {}), ('ChannelWiseDivergence', dict(tau=1)))
    }
    assert found == pytest.approx(dict(PKDLoss=0.99876237, ChannelWiseDivergence=0.98627907), rel=1e-6)
