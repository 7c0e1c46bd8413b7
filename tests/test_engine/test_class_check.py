"""Classes: `ClassCheckHook` refuses class outputs of other classes and nothing else; joined sets are all compared."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets import ConcatDataset as MMDetConcat
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import RepeatDataset
from mmengine.registry import init_default_scope
from torch import nn

from mmkd.engine.detector_classes import class_parameters, classes_by_set, gives_classes
from mmkd.engine.hooks import class_check_hook, distillation_picture_hook
from mmkd.engine.hooks.class_check_hook import ClassCheckHook
from mmkd.engine.hooks.distillation_picture_hook import DistillationPictureHook, legend_classes
from mmkd.testing.toy_detectors import toy_detector

FOUR = ('circle', 'square', 'triangle', 'cross')
SMALL = dict(width=8, convs=1)


def detector(family: str, classes: int = 4, channels: int = 16) -> ConfigDict:
    init_default_scope('mmdet')
    return toy_detector(family, num_classes=classes, channels=channels, **SMALL)


def rpn() -> ConfigDict:
    """The proposal network of the Faster R-CNN as a detector of its own."""
    cfg = detector('faster-rcnn')
    cfg.type = 'RPN'
    cfg.pop('roi_head')
    return cfg


def coco(classes: Sequence[str] = FOUR, **metainfo: Any) -> CocoDataset:
    """A data set that has read nothing yet."""
    return CocoDataset(ann_file='some.json', metainfo=dict(classes=tuple(classes), **metainfo), lazy_init=True)


def joined(*parts: CocoDataset) -> MMDetConcat:
    """Of parts with palettes of their own, so that there is no `metainfo` of the whole."""
    for number, part in enumerate(parts):
        part._metainfo['palette'] = [(number, 0, 0)]
    whole = MMDetConcat(list(parts), lazy_init=True)
    assert isinstance(whole.metainfo, list)
    return whole


def wrapped(dataset: Any) -> SimpleNamespace:
    """As `MultiImageMixDataset` and `RepeatDataset` wrap."""
    return SimpleNamespace(dataset=dataset, metainfo=dataset.metainfo)


def check(model: Any, dataset: Any) -> None:
    loader = SimpleNamespace(dataset=dataset)
    ClassCheckHook().before_train(SimpleNamespace(model=model, train_dataloader=loader))


def plain(cfg: ConfigDict) -> SimpleNamespace:
    """An algorithm without a teacher."""
    return SimpleNamespace(architecture=MODELS.build(cfg))


def pair(source: str, student: ConfigDict, teacher: ConfigDict, *, built: bool = False, **entry: Any) -> nn.Module:
    """A distillation that records one layer on both sides."""
    recorder = dict(layer=dict(type='ModuleOutputs', source=source))
    sides = dict(preds_S=True, preds_T=False)
    of_regions = source.startswith('roi')  # (R, C)
    loss = dict(type='mmrazor.KLDivergence') if of_regions else dict(type='mmkd.NormalizedLpLoss', p=2)
    distiller = dict(
        type='mmkd.DetectionDistiller',
        student_recorders=copy.deepcopy(recorder),
        teacher_recorders=recorder,
        distill_losses=dict(loss_kd=loss),
        loss_forward_mappings=dict(
            loss_kd={key: dict(recorder='layer', from_student=side, **entry) for key, side in sides.items()}
        ),
    )
    if 'data_idx' in entry and not of_regions:  # a list of levels
        distiller['distill_losses'] = dict(loss_kd=dict(type='mmkd.PyramidLoss', loss=loss))
    return MODELS.build(
        dict(
            type='mmkd.TeacherStudentDistill',
            architecture=student,
            teacher=MODELS.build(teacher) if built else teacher,
            teacher_ckpt=None if built else 'never_loaded.pth',
            distiller=distiller,
        )
    )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(class_check_hook, 'print_log', lambda text, **_: lines.append(text))
    return lines


def test_joined_sets_with_metainfo_of_their_own_are_compared(said: list[str]) -> None:
    check(plain(detector('retinanet')), joined(coco(), coco()))
    assert said == []


@pytest.mark.parametrize('wrap', [lambda d: d, wrapped], ids=['bare', 'wrapped'])
def test_the_joined_set_that_does_not_fit_is_named(wrap: Callable) -> None:
    dataset = wrap(joined(coco(), coco(('circle', 'square', 'triangle'))))
    message = r'predicts 4 classes, but data set 2 of 2 \(CocoDataset, some.json\) of the training set has 3'
    with pytest.raises(ValueError, match=message):
        check(plain(detector('retinanet')), dataset)


def test_joined_sets_whose_classes_may_differ_are_compared_too() -> None:
    dataset = MMDetConcat([coco(), coco(('circle', 'square'))], lazy_init=True, ignore_keys='classes')
    assert not isinstance(dataset.metainfo, list)
    with pytest.raises(ValueError, match='data set 2 of 2 .* has 2'):
        check(plain(detector('faster-rcnn')), dataset)


def test_joined_sets_of_another_order_are_refused() -> None:
    with pytest.raises(
        ValueError, match='number their classes differently: data set 2 of 2 .*square.*, but data set 1'
    ):
        check(plain(detector('retinanet')), joined(coco(), coco(('square', 'circle', 'triangle', 'cross'))))


def test_joined_sets_with_other_names_are_reported(said: list[str]) -> None:
    check(plain(detector('retinanet')), joined(coco(), coco(('disc', 'square', 'triangle', 'cross'))))
    assert len(said) == 1 and 'data set 2 of 2' in said[0] and 'disc' in said[0]


def test_one_set_keeps_its_plain_name() -> None:
    with pytest.raises(ValueError, match='The student predicts 7 classes, but the training set has 4'):
        check(plain(detector('retinanet', 7)), RepeatDataset(coco(), 2, lazy_init=True))


def test_a_set_without_classes_is_not_compared() -> None:
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    assert classes_by_set(dataset) == []
    check(plain(detector('retinanet', 7)), dataset)


def test_a_proposal_network_may_be_the_student(said: list[str]) -> None:
    check(plain(rpn()), coco())
    assert len(said) == 1 and 'num_classes=1 of the student is not compared' in said[0]


def test_a_student_that_reads_its_classes_may_have_256_tokens(said: list[str]) -> None:
    model = plain(detector('retinanet'))
    model.architecture.bbox_head.num_classes = 256
    with pytest.raises(ValueError, match='predicts 256 classes'):
        check(model, coco())
    model.architecture.language_model = nn.Identity()  # as GLIP and Grounding DINO
    check(model, coco())
    assert len(said) == 1 and 'reads the classes as text' in said[0]


def test_a_two_stage_student_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match='The student predicts 7 classes'):
        check(plain(detector('faster-rcnn', 7)), coco())


LAYERS = [
    ('retinanet', 'bbox_head', True),
    ('retinanet', 'bbox_head.retina_cls', True),
    ('retinanet', 'bbox_head.retina_reg', False),
    ('retinanet', 'bbox_head.cls_convs.0', False),
    ('retinanet', 'bbox_head.cls_convs.0.gn', False),
    ('retinanet', 'bbox_head.cls_convs.0.activate', False),
    ('retinanet', 'neck', False),
    ('gfl', 'bbox_head.gfl_cls', True),
    ('gfl', 'bbox_head.gfl_reg', False),
    ('fcos', 'bbox_head.conv_cls', True),
    ('fcos', 'bbox_head.conv_reg', False),
    ('fcos', 'bbox_head.conv_centerness', False),
    ('atss', 'bbox_head.atss_cls', True),
    ('yolox', 'bbox_head.multi_level_conv_cls.1', True),
    ('yolox', 'bbox_head.multi_level_conv_obj.1', False),
    ('yolox', 'bbox_head.multi_level_cls_convs.1', False),
    ('faster-rcnn', 'rpn_head', False),
    ('faster-rcnn', 'rpn_head.rpn_cls', False),
    ('faster-rcnn', 'roi_head', True),
    ('faster-rcnn', 'roi_head.bbox_head', True),
    ('faster-rcnn', 'roi_head.bbox_head.fc_cls', True),
    ('faster-rcnn', 'roi_head.bbox_head.fc_reg', True),
    ('faster-rcnn', 'roi_head.bbox_head.shared_fcs.1', False),
    ('faster-rcnn', 'roi_head.bbox_roi_extractor', False),
]


@pytest.mark.parametrize('classes', [1, 3, 4, 7])
def test_layers_that_depend_on_the_classes_are_told_from_the_others(classes: int) -> None:
    configs = {family: detector(family, classes) for family in {one for one, _, _ in LAYERS}}
    models = {family: MODELS.build(cfg) for family, cfg in configs.items()}
    parameters = {family: class_parameters(models[family], cfg) for family, cfg in configs.items()}
    found = [(family, layer, gives_classes(models[family], layer, parameters[family])) for family, layer, _ in LAYERS]
    assert found == LAYERS


def test_finding_them_draws_no_random_number() -> None:
    cfg = detector('retinanet')
    model = MODELS.build(cfg)
    state = torch.get_rng_state()
    assert class_parameters(model, cfg) == {'bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias'}
    assert torch.equal(torch.get_rng_state(), state)


def test_boxes_for_all_classes_together_do_not_depend_on_them() -> None:
    cfg = detector('faster-rcnn')
    cfg.roi_head.bbox_head.reg_class_agnostic = True
    model = MODELS.build(cfg)
    assert not gives_classes(model, 'roi_head.bbox_head.fc_reg', class_parameters(model, cfg))


def test_a_proposal_network_as_detector_does_not_depend_on_them() -> None:
    model = MODELS.build(rpn())
    assert class_parameters(model, rpn()) is None, 'its configuration names no number'
    assert not any(gives_classes(model, name, None) for name in ('bbox_head', 'bbox_head.rpn_cls'))


def test_a_head_of_the_usual_number_is_not_taken_for_one_without_classes() -> None:
    cfg = detector('retinanet', 4)
    model = MODELS.build(cfg)
    cfg.bbox_head.pop('num_classes')  # where the class has a default, a configuration need not name it
    assert class_parameters(model, cfg) is None
    assert gives_classes(model, 'bbox_head.retina_cls', None)


def test_the_whole_detector_depends_on_its_classes() -> None:
    cfg = detector('retinanet')
    model = MODELS.build(cfg)
    for parameters in (class_parameters(model, cfg), None):
        assert gives_classes(model, '', parameters)


def test_of_a_built_detector_every_layer_of_a_head_counts() -> None:
    model = MODELS.build(detector('faster-rcnn'))
    names = ('roi_head', 'roi_head.bbox_head.shared_fcs.1', 'rpn_head', 'rpn_head.rpn_cls', 'neck', 'backbone.layer4')
    assert [gives_classes(model, name, None) for name in names] == [True, True, False, False, False, False]


def test_a_detector_that_stands_no_other_number_of_classes_is_taken_as_built() -> None:
    cfg = detector('retinanet')
    model = MODELS.build(cfg)
    cfg.bbox_head.loss_cls = dict(type='NoLossAtAll')
    assert class_parameters(model, cfg) is None


@pytest.mark.parametrize(
    ('family', 'source', 'entry'),
    [
        ('retinanet', 'bbox_head.cls_convs.0.conv', {}),
        ('faster-rcnn', 'rpn_head', dict(data_idx=0)),
        ('faster-rcnn', 'rpn_head.rpn_conv', {}),
        ('retinanet', 'neck.fpn_convs.0', {}),
    ],
)
def test_a_teacher_of_other_classes_may_teach_what_has_no_classes(
    family: str, source: str, entry: dict, said: list[str]
) -> None:
    check(pair(source, detector(family), detector(family, 7), **entry), coco())
    assert said == ['The teacher predicts 7 classes, the training set has 4; no class outputs are distilled.']


def test_a_hidden_layer_of_regions_may_be_taught_by_a_teacher_of_other_classes(said: list[str]) -> None:
    check(pair('roi_head.bbox_head.relu', detector('faster-rcnn'), detector('faster-rcnn', 7)), coco())
    assert len(said) == 1


@pytest.mark.parametrize(
    ('family', 'source', 'classes'),
    [('retinanet', 'bbox_head', 4), ('retinanet', 'bbox_head.retina_cls', 4), ('faster-rcnn', 'roi_head.bbox_head', 4)],
)
def test_class_outputs_of_a_teacher_of_other_classes_are_refused(family: str, source: str, classes: int) -> None:
    entry = {} if source.endswith('cls') else dict(data_idx=0)
    model = pair(source, detector(family, 7), detector(family, 7), **entry)
    model.architecture = MODELS.build(detector(family, classes))
    message = rf"The teacher predicts 7 classes, the training set has 4, and a loss reads \['{source}'\]"
    with pytest.raises(ValueError, match=message):
        check(model, coco())


def test_the_joined_set_that_does_not_fit_the_teacher_is_named() -> None:
    model = pair('bbox_head.retina_cls', detector('retinanet'), detector('retinanet'))
    model.architecture = SimpleNamespace()
    with pytest.raises(ValueError, match='predicts 4 classes, data set 2 of 2 .* has 3, and a loss reads'):
        check(model, joined(coco(), coco(('circle', 'square', 'triangle'))))


def test_joined_sets_of_the_same_classes_name_them_in_the_legend() -> None:
    assert legend_classes(joined(coco('ab'), coco('ab'))) == legend_classes(coco('ab')) == ('a', 'b')


def test_joined_sets_of_different_classes_have_no_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(distillation_picture_hook, 'print_log', lambda text, **_: said.append(text))
    assert legend_classes(joined(coco('ab'), coco('ba'))) == ()
    assert len(said) == 1 and 'data set 2 of 2 (CocoDataset, some.json) has the classes' in said[0]


def test_hook_takes_joined_validation_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = joined(coco(), coco())
    monkeypatch.setattr(distillation_picture_hook, 'subjects_of', lambda *_: [])
    monkeypatch.setattr(distillation_picture_hook, 'image_pipeline', lambda _: [])
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    hook = DistillationPictureHook()
    model = SimpleNamespace(distiller=SimpleNamespace(mappings={}, taps={}, level_names={}))
    training = dict(train_loop=None, train_dataloader=iter([]))  # of no length
    hook.before_train(SimpleNamespace(model=model, val_loop=loop, cfg={}, **training))
    assert hook.options.classes == FOUR


@pytest.mark.parametrize('recorded', ['bbox_head.retina_cls', 'neck.lateral_convs.0.conv'])
def test_a_teacher_whose_configuration_numbers_the_classes_otherwise(recorded: str, said: list[str]) -> None:
    model = pair(recorded, detector('retinanet'), detector('retinanet'))
    source = model._teacher.source
    model._teacher.source = dataclasses.replace(source, classes=('square', 'circle', 'triangle', 'cross'))
    if recorded.startswith('neck'):
        check(model, coco())
        assert 'numbers the classes otherwise' in said[0] and 'no class outputs are distilled' in said[0]
    else:
        with pytest.raises(ValueError, match='numbers the classes otherwise: .*square.*, and a loss reads'):
            check(model, coco())
    model._teacher.source = dataclasses.replace(source, classes=FOUR)
    check(model, coco())
