"""From a run to what its user takes away: MMDetection's checkpoint and configuration, and an ONNX graph.

All files are made and checked in memory first; nothing is written when one of them fails.
"""

import copy
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from mmkd import __version__
from mmkd.compat import load_checkpoint_file
from mmkd.engine.config_as_data import parse_config
from mmkd.engine.detector_classes import num_classes
from mmkd.engine.export_onnx import REST, RawOutputs, check_shape, largest_difference, onnx_bytes
from mmkd.engine.export_report import ExportReport, teacher_of
from mmkd.engine.export_source import ExportSource, read_source
from mmkd.engine.mmdet_config import dataset_metainfo, inference_dataset, mmdet_config, one_metainfo
from mmkd.engine.preflight import check_sizes
from mmkd.models.algorithms.checkpoint_state import file_sha256, load_strictly
from mmkd.models.algorithms.probe_size import probe_input
from mmkd.whole_files import write_whole

# Sums over many images; and a table of whole numbers that GFL's head multiplies with.
KEPT_FLOAT32 = ('running_mean', 'running_var', 'integral.project')
DEFAULT_SHAPE = (512, 512)


class ExportError(RuntimeError):
    """Exported files that do not give what the source gives."""

    user_mistake = True


@dataclass(frozen=True)
class ExportOptions:
    """What is to be written.

    Args:
        out: `.pth` file; the configuration goes beside it under the same name with `.py`.
        onnx: `.onnx` file, or None.
        shape: (H, W) px of the graph's input and of the count of GFLOPs; None takes that of the test pipeline.
        config: configuration to read instead of the checkpoint's own.
        raw: raw weights instead of averaged ones.
        half: float16 weights.
        force: replace files that exist.
    """

    out: Path
    onnx: Path | None = None
    shape: tuple[int, int] | None = None
    config: str | None = None
    raw: bool = False
    half: bool = False
    force: bool = False

    @property
    def files(self) -> list[Path]:
        """Everything that will be written: checkpoint, configuration, graph."""
        return [self.out, self.out.with_suffix('.py'), *([self.onnx] if self.onnx else [])]


def check_outputs(options: ExportOptions) -> None:
    """Refuse names that cannot be written, before any work.

    Raises:
        ValueError: another ending, a folder, a folder's place taken by a file.
        FileExistsError: a file is there and `force` is not given.
    """
    for path, suffix, option in ((options.out, '.pth', '--out'), (options.onnx, '.onnx', '--onnx')):
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f'{option} {path} is a folder; name a file that ends in {suffix}.')
        if path.suffix != suffix:
            raise ValueError(f'{option} must end in {suffix}, got {path}.')
        blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocking is not None:
            raise ValueError(f'{option} {path}: {blocking} is a file, not a folder.')
    there = [str(path) for path in options.files if path.exists()]
    if there and not options.force:
        raise FileExistsError(f'{", ".join(there)} exists already. Choose another name, or --force to replace it.')


def half_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights in float16, but for statistics and for what float16 cannot hold; and a sentence about it."""
    halved: dict[str, Tensor] = {}
    for name, value in state.items():
        small = value.half() if value.dtype in (torch.float32, torch.float64) else value
        kept = name.endswith(KEPT_FLOAT32) or not bool(torch.isfinite(small).all())
        halved[name] = value if kept else small
    count = sum(value.dtype == torch.float16 for value in halved.values())
    return halved, f'float16: {count} of {len(state)} tensors, the others as they were'


def pipeline_shape(cfg: Config, divisor: int) -> tuple[int, int] | None:
    """(H, W) that the test pipeline resizes a landscape picture into, padded; None if it does not resize."""
    for step in inference_dataset(cfg).get('pipeline') or []:
        scale = step.get('scale') if str(step.get('type')).endswith('Resize') else None
        if isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
            width, height = scale  # MMDetection's order
            return tuple(-(-side // divisor) * divisor for side in (height, width))
    return None


def build(cfg: Config, state: Any, name: str) -> BaseModel:
    """The network of a plain configuration with these weights, in eval mode on the CPU.

    Raises:
        ValueError: a size in the configuration that no machine could serve.
        mmkd.models.algorithms.checkpoint_state.CheckpointMismatchError: the weights are not this network's.
    """
    too_large = list(check_sizes(cfg))
    if too_large:
        raise ValueError('\n'.join(too_large))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    load_strictly(model, state, name=name)
    return model.eval()


def _meta(source: ExportSource, cfg: Config, options: ExportOptions) -> dict[str, Any]:
    """What the exported checkpoint says about itself: plain values only, and no path of this machine."""
    saved = {key.lower(): value for key, value in one_metainfo(source.meta.get('dataset_meta')).items()}
    classes = source.meta.get('CLASSES')  # before MMDetection 3
    metainfo = saved if saved.get('classes') else dict(classes=classes) if classes else dataset_metainfo(cfg)
    exported = dict(by=f'mmkd {__version__}', source=source.path.name, sha256=file_sha256(source.path))
    return dict(
        cfg=cfg.pretty_text,
        dataset_meta={key: metainfo[key] for key in ('classes', 'palette') if metainfo.get(key) is not None},
        exported=dict(exported, raw=options.raw, half=options.half),
        **{key: source.meta[key] for key in ('epoch', 'iter') if key in source.meta},
    )


def checkpoint_bytes(state: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """A checkpoint file's content; tensors that are views do not drag their storage along."""
    out = io.BytesIO()
    torch.save(dict(meta=meta, state_dict={name: value.detach().cpu().clone() for name, value in state.items()}), out)
    return out.getvalue()


def _outputs(model: BaseModel, inputs: Tensor) -> list[Tensor]:
    if isinstance(getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None), torch.nn.Module):
        try:
            return list(RawOutputs(model)(inputs))
        except RuntimeError:  # no dense head
            pass
    features = model.extract_feat(inputs)
    return list(features) if isinstance(features, list | tuple) else [features]


def rounding(model: BaseModel, exported: BaseModel) -> float:
    """Largest difference of both networks' raw outputs on random pixels, as a part of an output's largest value."""
    size = probe_input(student=model).shape
    inputs = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(_outputs(model, inputs), _outputs(exported, inputs), strict=True)
        found = [(a - b).abs().max() / a.abs().max().clamp_min(1e-6) for a, b in pairs]
    return float(torch.stack(found).max())  # NaN, where one is


def _reload(data: bytes, text: str, model: BaseModel, options: ExportOptions, notes: list[str]) -> BaseModel:
    """The network that a user will get from the exported files, compared with the source's."""
    name = f'the exported {options.out.name}'
    exported = build(parse_config(text, name), load_checkpoint_file(io.BytesIO(data)), name)
    difference = rounding(model, exported)
    if not math.isfinite(difference):
        raise ExportError(f'The outputs of {type(model).__name__}, or of what was exported, are not finite.')
    if options.half:
        notes.append(
            f'float16 changes the raw outputs by at most {difference:.2g} of their largest value (random pixels)'
        )
    elif difference != 0:
        raise ExportError(f'The exported files give other outputs than {type(model).__name__} of the source.')
    return exported


def export_student(name: str, options: ExportOptions) -> ExportReport:
    """Write the student of a run as a plain MMDetection checkpoint and configuration, and as an ONNX graph.

    Args:
        name: checkpoint or work directory; of mmkd, MMDetection or MMRazor.
        options: what to write.

    Returns:
        Sizes, parameters and GFLOPs before and after, and what was left out.

    Raises:
        FileExistsError: a file is there and `options.force` is not given.
        FileNotFoundError: the source does not exist.
        ValueError: wrong names or shapes, or a source without a student.
        mmkd.compat.UnsafeCheckpointError: the source is damaged or wants to execute code.
        mmkd.models.algorithms.checkpoint_state.CheckpointMismatchError: the weights are of another network.
        mmkd.engine.export_onnx.OnnxError: the student cannot become a graph.
    """
    check_outputs(options)
    source = read_source(name, config=options.config, raw=options.raw)
    if any(path.exists() and path.samefile(source.path) for path in options.files):
        raise ValueError(f'--out {options.out} is the source itself; an export replaces nothing of a run.')
    cfg, left_out = mmdet_config(source.cfg)
    notes = [*source.notes, *left_out]
    model = build(cfg, source.state, f'the student {cfg.model.type} of {source.path}')
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    shape = options.shape or pipeline_shape(cfg, divisor) or DEFAULT_SHAPE
    check_shape(model, shape)
    state = {key: value for key, value in source.state.items() if key in model.state_dict()}
    if options.half:
        state, note = half_state(state)
        notes.append(note)
    meta = _meta(source, cfg, options)
    classes = meta['dataset_meta'].get('classes') or ()
    if num_classes(model) not in (None, len(classes)):
        notes.append(f'{len(classes)} class names are known, the student predicts {num_classes(model)} classes')
    data = checkpoint_bytes(state, meta)
    contents = [data, meta['cfg'].encode()]
    exported = _reload(data, meta['cfg'], model, options, notes)
    if options.onnx:
        contents.append(onnx_bytes(exported, shape, classes, inference_dataset(cfg).get('pipeline') or []))
        difference = largest_difference(contents[-1], exported, shape)
        notes.append(f'onnxruntime and PyTorch differ by at most {difference:.2g} of an output (1 and 3 images)')
        notes += [REST] if hasattr(exported, 'roi_head') else []
    for path, content in zip(options.files, contents, strict=True):
        write_whole(content, path)
    return ExportReport(source, options.files, notes, shape, model, exported, teacher_of(source))
