"""A detector as an ONNX graph: everything up to the raw outputs, for any number of images of one size.

The graph's input is what MMDetection's data preprocessor makes: normalised and padded, (N, 3, H, W), float32. Padding
comes behind normalisation there, so normalising inside the graph could not give the same numbers. The constants, and
how the test pipeline resizes and pads before, are in the file's metadata under `detector`, as JSON.

What follows the raw outputs (decoding of boxes, NMS; for a two-stage detector also RoIAlign and the box head) is not in
the graph: `detections` is MMDetection's own post-processing on the outputs of any runtime.

Letters: `N` images, `C` channels, `H`, `W` px of the padded network input, `L` levels.
"""

import inspect
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

OPSET = 17
# Largest difference between onnxruntime and PyTorch, as a part of an output's largest value.
TOLERANCE = 1e-3
# Settings of MMDetection's Resize and Pad that the metadata does not say.
USUAL = dict(scale_factor=None, backend='cv2', interpolation='bilinear', padding_mode='constant')
REST = (
    'the graph ends at the RPN: it gives the features of the neck and the raw outputs of the RPN. Proposals, RoIAlign '
    'and the box head are not in it; mmkd.engine.export_onnx.detections runs them in PyTorch on its outputs'
)


class OnnxError(RuntimeError):
    """A detector that cannot become a graph, or whose graph computes something else."""

    user_mistake = True


class RawOutputs(nn.Module):
    """The part of a detector that becomes a graph.

    Args:
        model: one-stage: backbone, neck and dense head; two-stage: backbone, neck and RPN.

    Raises:
        OnnxError: it is neither.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.two_stage = isinstance(model, TwoStageDetector)
        head = getattr(model, 'rpn_head' if self.two_stage else 'bbox_head', None)
        known = isinstance(model, SingleStageDetector | TwoStageDetector) and isinstance(head, BaseDenseHead)
        if not known:
            raise OnnxError(
                f'ONNX: {type(model).__name__} is neither a one-stage detector with a dense head nor a two-stage one '
                'with an RPN (DETR and its kin, classifiers). The checkpoint and its configuration can be exported.'
            )
        self.model = model
        self.head = head

    def groups(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Outputs by the names that MMDetection's `predict_by_feat` has for them, each a list of `L` (N, C, h, w)."""
        features = self.model.extract_feat(inputs)
        outputs = self.head(features)
        names = [name for name in inspect.signature(self.head.predict_by_feat).parameters if name != 'self']
        prefix = 'rpn_' if self.two_stage else ''
        found = {'features': list(features)} if self.two_stage else {}
        for index, output in enumerate(outputs):
            levels = list(output) if isinstance(output, list | tuple) else [output]
            if not all(isinstance(level, Tensor) for level in levels):
                raise OnnxError(f'ONNX: {type(self.head).__name__} gives other things than one tensor a level.')
            found[prefix + names[index]] = levels
        return found

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs in a row, in the order of `output_names`."""
        return tuple(level for levels in self.groups(inputs).values() for level in levels)


def output_names(model: BaseModel, shape: tuple[int, int]) -> list[str]:
    """Names of the graph's outputs: group and level, such as `cls_scores_0`."""
    with torch.no_grad():
        groups = RawOutputs(model).groups(torch.zeros(1, 3, *shape))
    return [f'{name}_{level}' for name, levels in groups.items() for level in range(len(levels))]


def check_shape(model: BaseModel, shape: tuple[int, int]) -> None:
    """Refuse a size that the student's data preprocessor never makes.

    Raises:
        ValueError: not positive, or not divisible as the preprocessor pads; names the next size that is.
    """
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    if min(shape) < 1 or any(side % divisor for side in shape):
        fitting = ' '.join(str(max(1, -(-side // divisor)) * divisor) for side in shape)
        raise ValueError(
            f'--shape {shape[0]} {shape[1]}: height and width must be positive and divisible by {divisor}, as the '
            f'student pads its images; the next size is {fitting}.'
        )


def pipeline_metadata(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a test pipeline resizes and pads a picture, before it is normalised.

    Args:
        pipeline: MMDetection's steps.

    Returns:
        `resize`: `scale` (width, height) and `keep_ratio`, as MMDetection's `Resize` takes them; `pad`: the `value` of
        each channel, and what is padded to: `to_square`, `size_divisor`, `size` (width, height). None where there is no
        such step; `other`, its name, where it is of another kind.
    """
    found: dict[str, Any] = dict(resize=None, pad=None)
    for step in pipeline:
        kind = str(step['type']).removeprefix('mmdet.')
        usual = all(step.get(name, value) == value for name, value in USUAL.items())
        if kind == 'Resize' and usual:
            scale = step['scale']
            scale = [scale, scale] if isinstance(scale, int) else list(scale)
            found['resize'] = dict(scale=scale, keep_ratio=step.get('keep_ratio', False))
        elif kind == 'Pad' and usual:
            value = step.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, Mapping) else value
            value = [value] * 3 if isinstance(value, int | float) else list(value)
            sizes = {name.removeprefix('pad_'): step.get(name) for name in ('pad_to_square', 'size', 'size_divisor')}
            found['pad'] = dict(value=value, **sizes)
        elif kind.endswith(('Resize', 'Pad')):
            found['resize' if kind.endswith('Resize') else 'pad'] = dict(other=kind)
    return found


def metadata(
    model: BaseModel, shape: tuple[int, int], classes: Sequence[str], pipeline: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What a program needs to make the input and to read the outputs."""
    preprocessor = model.data_preprocessor
    constants = {name: getattr(preprocessor, name, None) for name in ('mean', 'std')}
    return dict(
        detector=type(model).__name__,
        shape=list(shape),
        classes=list(classes),
        mean=None if constants['mean'] is None else constants['mean'].flatten().tolist(),
        std=None if constants['std'] is None else constants['std'].flatten().tolist(),
        bgr_to_rgb=bool(getattr(preprocessor, '_channel_conversion', False)),
        pad_size_divisor=getattr(preprocessor, 'pad_size_divisor', 1),
        pad_value=getattr(preprocessor, 'pad_value', 0),
        **pipeline_metadata(pipeline),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own warnings: it is to be replaced, and sizes become constants, which is what is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', message='Constant folding', category=UserWarning)
        yield


def onnx_bytes(
    model: BaseModel, shape: tuple[int, int], classes: Sequence[str], pipeline: Sequence[Mapping[str, Any]] = ()
) -> bytes:
    """The detector's graph as a file's content, checked against PyTorch by nobody yet.

    Args:
        model: detector in eval mode on the CPU.
        shape: (H, W) of the input; the number of images is free.
        classes: names, for the metadata.
        pipeline: MMDetection's test pipeline, for the metadata.

    Raises:
        ImportError: onnx is not installed.
        OnnxError: the detector cannot become a graph; says why.
        ValueError: a shape that the student never sees.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError('--onnx needs the packages onnx and onnxruntime: pip install onnx onnxruntime') from error
    wrapped = RawOutputs(model).eval()
    check_shape(model, shape)
    out = io.BytesIO()
    # The newer exporter needs onnxscript and has other options in every release; this one is in all of 2.4 to 2.13.
    legacy = dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    try:
        names = output_names(model, shape)
        axes = {name: {0: 'batch'} for name in ('input', *names)}
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                wrapped,
                (torch.zeros(2, 3, *shape),),
                out,
                input_names=['input'],
                output_names=names,
                dynamic_axes=axes,
                opset_version=OPSET,
                **legacy,
            )
    except OnnxError:
        raise
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().split('\n')[0]
        raise OnnxError(
            f'ONNX: {type(model).__name__} cannot become a graph for {shape[0]}x{shape[1]}: {reason}'
        ) from error
    graph = onnx.load_from_string(out.getvalue())
    entry = graph.metadata_props.add()
    entry.key, entry.value = 'detector', json.dumps(metadata(model, shape, classes, pipeline))
    onnx.checker.check_model(graph)
    return graph.SerializeToString()


def run_onnx(data: bytes, inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of a graph on the CPU by onnxruntime.

    Args:
        data: content of the file.
        inputs: (N, 3, H, W), float32, normalised.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('--onnx is checked by onnxruntime: pip install onnxruntime') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider']).run(None, {'input': inputs})


def largest_difference(data: bytes, model: BaseModel, shape: tuple[int, int]) -> float:
    """Largest difference between onnxruntime and PyTorch, for 1 and 3 images of random pixels.

    Returns:
        Difference as a part of the largest value of the same output.

    Raises:
        OnnxError: it is above `TOLERANCE`, or outputs differ in number or shape.
    """
    differences, wrapped = [], RawOutputs(model).eval()
    generator = torch.Generator().manual_seed(0)
    for images in (1, 3):
        inputs = torch.randn(images, 3, *shape, generator=generator)
        with torch.no_grad():
            expected = [output.numpy() for output in wrapped(inputs)]
        found = run_onnx(data, inputs.numpy())
        if [value.shape for value in found] != [value.shape for value in expected]:
            raise OnnxError(f'ONNX: with {images} images the graph gives other shapes than PyTorch.')
        for one, other in zip(found, expected, strict=True):
            differences.append(np.abs(one - other).max() / max(np.abs(other).max(), 1e-6))
    worst = float(np.max(differences))  # NaN, where one is; `max` would lose it
    if not worst <= TOLERANCE:
        raise OnnxError(f'ONNX: the graph differs from PyTorch by {worst:.2g} of an output, more than {TOLERANCE:g}.')
    return worst


def detections(
    model: BaseModel, outputs: Sequence[np.ndarray], samples: list, rescale: bool = True
) -> list[InstanceData]:
    """MMDetection's own post-processing on the outputs of a graph.

    Args:
        model: the detector the graph was made from, in eval mode.
        outputs: of the graph, in its order, for `N` images.
        samples: `N` data samples of MMDetection, whose metainfo says how each image was resized and padded.
        rescale: boxes in px of the original image instead of the network's input.

    Returns:
        `bboxes` (M, 4), `scores` and `labels` for each image.
    """
    wrapped, tensors = RawOutputs(model), [torch.as_tensor(value) for value in outputs]
    groups, start = [], 0
    with torch.no_grad():
        sizes = wrapped.groups(torch.zeros(1, 3, *samples[0].batch_input_shape))
        for levels in sizes.values():
            groups.append(tensors[start : start + len(levels)])
            start += len(levels)
        metas = [sample.metainfo for sample in samples]
        if not wrapped.two_stage:
            return wrapped.head.predict_by_feat(*groups, batch_img_metas=metas, rescale=rescale)
        features, *rpn = groups
        proposals = wrapped.head.predict_by_feat(*rpn, batch_img_metas=metas, rescale=False)
        return model.roi_head.predict(tuple(features), proposals, samples, rescale=rescale)
