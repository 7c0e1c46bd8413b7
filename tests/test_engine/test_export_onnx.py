"""The ONNX graph of every family: onnxruntime gives what PyTorch gives, on pictures, for any number of them."""

import io
import json
import math
import runpy
import sys
from pathlib import Path

import mmcv
import numpy as np
import onnx
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS
from torch import nn

from mmkd.engine.export import ExportOptions, export_student, rounding
from mmkd.engine.export_onnx import (
    OnnxError,
    RawOutputs,
    check_shape,
    detections,
    largest_difference,
    onnx_bytes,
    output_names,
    pipeline_metadata,
    run_onnx,
)
from mmkd.testing.data import shared_data
from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import FAMILIES, toy_detector

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'export.md'
SHAPE = (96, 128)
GROUPS = {
    'retinanet': ['cls_scores', 'bbox_preds'],
    'gfl': ['cls_scores', 'bbox_preds'],
    'fcos': ['cls_scores', 'bbox_preds', 'score_factors'],
    'atss': ['cls_scores', 'bbox_preds', 'score_factors'],
    'yolox': ['cls_scores', 'bbox_preds', 'objectnesses'],
    'faster-rcnn': ['features', 'rpn_cls_scores', 'rpn_bbox_preds'],
}


def detector_config(family: str) -> ConfigDict:
    """A small detector that keeps boxes of any score."""
    cfg = toy_detector(family, width=8, channels=16, convs=1)
    if family == 'faster-rcnn':
        cfg.test_cfg.rcnn.score_thr = 0.0
    else:
        cfg.test_cfg.score_thr = 0.0
    return cfg


def detector(family: str) -> nn.Module:
    """A detector whose weights differ everywhere from what PyTorch starts with, BatchNorm's statistics too."""
    model = MODELS.build(detector_config(family))
    model.init_weights()
    for name, value in model.state_dict().items():
        if name.endswith('running_mean'):
            value.copy_(0.1 * torch.randn(value.shape))
        elif name.endswith('running_var'):
            value.copy_(0.8 + 0.4 * torch.rand(value.shape))
        elif (
            name.endswith('weight') and value.dim() == 4 and any(part in name for part in ('_cls.', 'conv_cls.', 'obj'))
        ):
            value.copy_(0.2 * torch.randn(value.shape))  # scores that differ, so that NMS has no ties
    return model.eval()


def fits(path: Path) -> bool:
    """Whether the test pipeline makes the graph's size of a picture; it turns its scale for portrait pictures."""
    height, width = mmcv.imread(str(path)).shape[:2]
    return 4 / 3 <= width / height < 1.9


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of different sizes: photographs where there are some, drawn ones otherwise."""
    try:
        coco = [path for path in sorted(shared_data('coco_sample').rglob('*.jpg')) if fits(path)]
        found = coco[:2] + sorted(shared_data('bccd').rglob('*.jp*g'))[:1]
    except FileNotFoundError:
        found = sorted(
            (make_toy_data(tmp_path_factory.mktemp('toy'), train=2, val=1, size=(192, 144)) / 'images').glob('*')
        )
    assert len(found) == 3
    return found


def batch(model: nn.Module, pictures: list[Path]) -> dict:
    """What MMDetection's test pipeline and data preprocessor make."""
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=SHAPE[::-1], keep_ratio=True)]
    steps += [dict(type='PackDetInputs', meta_keys=meta)]
    pipeline = Compose(steps)
    items = [pipeline(dict(img_path=str(path), img_id=i)) for i, path in enumerate(pictures)]
    return model.data_preprocessor(pseudo_collate(items))


@pytest.mark.parametrize('family', FAMILIES)
def test_onnxruntime_gives_what_pytorch_gives(family: str, pictures: list[Path]) -> None:
    model = detector(family)
    data = onnx_bytes(model, SHAPE, ('a', 'b', 'c', 'd'))
    names = output_names(model, SHAPE)
    assert list(dict.fromkeys(name.rpartition('_')[0] for name in names)) == GROUPS[family]
    for count in (1, 3):  # neither is the number that the graph was traced with
        made = batch(model, pictures[:count])
        assert made['inputs'].shape == (count, 3, *SHAPE)
        outputs = run_onnx(data, made['inputs'].numpy())
        with torch.no_grad():
            expected = [output.numpy() for output in RawOutputs(model)(made['inputs'])]
            predicted = model.predict(made['inputs'], made['data_samples'], rescale=True)
        assert [value.shape for value in outputs] == [value.shape for value in expected]
        for one, other in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())
        found = detections(model, outputs, made['data_samples'])
        assert len(found) == count
        for one, sample in zip(found, predicted, strict=True):
            assert_same_detections(one, sample.pred_instances)


def assert_same_detections(found, expected) -> None:
    """The same boxes; beyond the best half, scores may be as good as equal."""
    assert len(found) == len(expected) > 10
    assert torch.isfinite(expected.bboxes).all()
    for i in range(expected.scores.numel() // 2):
        distance = (found.bboxes - expected.bboxes[i]).abs().sum(1) + 1e3 * (found.labels != expected.labels[i])
        nearest = int((distance + 1e2 * (found.scores - expected.scores[i]).abs()).argmin())
        assert found.labels[nearest] == expected.labels[i]
        torch.testing.assert_close(found.scores[nearest], expected.scores[i], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.bboxes[nearest], expected.bboxes[i], rtol=1e-3, atol=1e-2)


def test_metadata_says_how_to_make_the_input() -> None:
    graph = onnx.load_from_string(onnx_bytes(detector('retinanet'), SHAPE, ('a', 'b')))
    found = json.loads({entry.key: entry.value for entry in graph.metadata_props}['detector'])
    assert found['classes'] == ['a', 'b'] and found['shape'] == [96, 128]
    assert found['mean'] == pytest.approx([123.675, 116.28, 103.53]) and found['bgr_to_rgb'] is True
    assert (found['pad_size_divisor'], found['pad_value'], found['detector']) == (32, 0, 'RetinaNet')
    batches = {graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param}
    batches |= {output.type.tensor_type.shape.dim[0].dim_param for output in graph.graph.output}
    assert batches == {'batch'}


def test_a_graph_of_other_weights_is_noticed() -> None:
    model = detector('retinanet')
    data = onnx_bytes(model, SHAPE, ())
    assert largest_difference(data, model, SHAPE) < 1e-4
    with torch.no_grad():
        model.bbox_head.retina_reg.weight[0, 0] += 0.5
    with pytest.raises(OnnxError, match='differs from PyTorch'):
        largest_difference(data, model, SHAPE)


def test_outputs_that_are_not_finite_are_no_agreement() -> None:
    model = detector('retinanet')
    data = onnx_bytes(model, SHAPE, ())
    with torch.no_grad():
        model.bbox_head.retina_reg.bias[0] = float('nan')  # of the later outputs
    with pytest.raises(OnnxError, match='by nan of an output'):
        largest_difference(data, model, SHAPE)
    assert math.isnan(rounding(model, model))


def test_a_graph_for_a_fixed_number_of_images_is_noticed() -> None:
    model = detector('retinanet')
    out = io.BytesIO()
    names = output_names(model, SHAPE)
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(
            RawOutputs(model),
            (torch.zeros(1, 3, *SHAPE),),
            out,
            input_names=['input'],
            output_names=names,
            dynamo=False,
        )
    with pytest.raises(Exception, match='Got invalid dimensions|other shapes'):
        largest_difference(out.getvalue(), model, SHAPE)


def test_a_detector_without_dense_head_is_refused() -> None:
    model = nn.Module()
    with pytest.raises(OnnxError, match='Module is neither a one-stage detector'):
        RawOutputs(model)


def test_a_detector_that_cannot_be_traced_says_why() -> None:
    model = detector('retinanet')
    model.neck.forward = lambda features: (_ for _ in ()).throw(RuntimeError('levels do not fit\nmore'))
    with pytest.raises(OnnxError, match='RetinaNet cannot become a graph for 96x128: levels do not fit$'):
        onnx_bytes(model, SHAPE, ())


@pytest.mark.parametrize(('shape', 'says'), [((100, 128), 'next size is 128 128'), ((0, 32), 'next size is 32 32')])
def test_a_size_that_the_student_never_sees_is_refused(shape: tuple[int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_shape(detector('retinanet'), shape)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='pip install onnx onnxruntime'):
        onnx_bytes(detector('retinanet'), SHAPE, ())
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='pip install onnxruntime'):
        run_onnx(b'', np.zeros(1))


def awake(model: nn.Module, picture: Path) -> nn.Module:
    """The detector with activations as a trained one has them, so that padding is felt, and scores around a half."""
    pixels = torch.from_numpy(mmcv.imread(str(picture))).permute(2, 0, 1)
    inputs = model.data_preprocessor(dict(inputs=[pixels], data_samples=None))['inputs']
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that it has seen
    with torch.no_grad():
        model.train()(inputs)
        for name, value in model.named_parameters():
            if name.endswith('.bias') and ('_cls' in name or '_obj' in name):
                value.zero_()
            elif 'conv_reg.' in name:  # of YOLOX, which takes the exponential of it
                value.mul_(0.02)
    return model.eval()


RESIZE = dict(type='Resize', scale=(100, 70), keep_ratio=True)
PAD = dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
# Family, and how its test pipeline resizes and pads a picture of 120x80 px; (100, 70) is no multiple of 32.
PIPELINES = {
    'its own scale': ('retinanet', [RESIZE]),
    'no ratio kept': ('fcos', [dict(type='Resize', scale=(100, 70))]),
    'padded by 114': ('yolox', [dict(RESIZE, scale=(96, 96)), PAD]),
    'padded by 114, then by the preprocessor': ('yolox', [dict(RESIZE, scale=(100, 100)), PAD]),
    'padded to a divisor': ('retinanet', [RESIZE, dict(type='Pad', size_divisor=16, pad_val=50)]),
    'padded to a size': ('atss', [RESIZE, dict(type='Pad', size=(120, 90))]),
}


@pytest.mark.parametrize('name', PIPELINES)
def test_the_program_on_the_page_does_what_the_test_pipeline_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, steps = PIPELINES[name]
    data = make_toy_data(tmp_path / 'toy', train=1, val=1, size=(120, 80))
    cfg = training_config(detector_config(family), detection_data(data), Schedule(1, (96, 64), 2), 0)
    pipeline = cfg.val_dataloader.dataset.pipeline
    packed = [step for step in pipeline if step['type'] == 'PackDetInputs']
    cfg.val_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), *steps, *packed]
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, cfg.val_cfg
    files = [tmp_path / 'student.onnx', tmp_path / 'student.pth', next((data / 'images').glob('train*'))]
    state = awake(detector(family), files[2]).state_dict()
    torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=state), tmp_path / 'run.pth')
    export_student(str(tmp_path / 'run.pth'), ExportOptions(files[1], onnx=files[0]))
    model = init_detector(str(files[1].with_suffix('.py')), str(files[1]), device='cpu')
    expected = inference_detector(model, str(files[2])).pred_instances
    (tmp_path / 'run_onnx.py').write_text(PAGE.read_text().split('# file: my/run_onnx.py\n')[1].split('```')[0])
    monkeypatch.setattr(sys, 'argv', ['run_onnx.py', *map(str, files)])
    found = runpy.run_path(str(tmp_path / 'run_onnx.py'), run_name='__main__')['found']
    assert expected.scores.max() > 0.1
    assert_same_detections(found, expected)


def test_a_step_that_the_metadata_cannot_say_is_named() -> None:
    for step in (dict(type='FixShapeResize', width=96, height=64), dict(RESIZE, interpolation='bicubic')):
        assert pipeline_metadata([step]) == dict(resize=dict(other=step['type']), pad=None)
    assert pipeline_metadata([dict(PAD, padding_mode='edge')])['pad'] == dict(other='Pad')
    usual = pipeline_metadata([dict(RESIZE, type='mmdet.Resize', backend='cv2'), dict(PAD, pad_val=7)])
    assert usual['resize'] == dict(scale=[100, 70], keep_ratio=True)
    assert usual['pad'] == dict(value=[7, 7, 7], to_square=True, size=None, size_divisor=None)
    assert pipeline_metadata([]) == dict(resize=None, pad=None)
