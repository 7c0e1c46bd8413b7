"""One training step on a made image: it shows wiring that records alone do not, such as labels, masks and proposals.

The model is thrown away afterwards: its statistics, and whatever else a step changes, are not those of a training.
"""

import os
import warnings

import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd.engine.explain import explain
from mmkd.engine.random_state import preserved_random_state
from mmkd.models.algorithms.missing_operator import MissingOperatorError, lent_operators
from mmkd.models.algorithms.probe_size import PROBE_SIZE

# (H, W) px: a whole cell at stride 128, and not square.
SIZE = (128, 256)
# x1 y1 x2 y2 px: a large object and a small one, so that several levels of a pyramid have something to assign.
BOXES = ((20.0, 10.0, 180.0, 110.0), (200.0, 40.0, 230.0, 64.0))


def made_batch(size: tuple[int, int] = SIZE) -> tuple[Tensor, list[DetDataSample]]:
    """A preprocessed batch of one image of noise, (1, 3, H, W), with two objects of class 0.

    Args:
        size: (H, W) px, at least `SIZE`.
    """
    inputs = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
        img_id=0,
        img_path='a made image',
    )
    masks = np.zeros((len(BOXES), *size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    sample = DetDataSample(metainfo=meta)
    labels = torch.zeros(len(BOXES), dtype=torch.long)
    sample.gt_instances = InstanceData(bboxes=torch.tensor(BOXES), labels=labels, masks=BitmapMasks(masks, *size))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return inputs, [sample]


def step_problem(model: nn.Module) -> str | None:
    """What goes wrong in a training step of an algorithm, every loss on; None if nothing does.

    None also for a student that is no detector, or that cannot be trained on the made image by itself (one that wants
    more than boxes, masks and labels): then only a real image can tell.

    Args:
        model: an algorithm of mmkd, not used for anything else afterwards.
    """
    if not isinstance(getattr(model, 'architecture', None), BaseDetector) or not hasattr(model, 'distiller'):
        return None
    networks = dict(student=model.architecture)
    if hasattr(model, '_teacher'):
        networks['teacher'] = model.teacher
        model._teacher.loaded = True  # its weights are checked elsewhere
    model.distiller.schedules = {}
    size, hint = _made_size(model)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # one image is too little for its statistics
    with preserved_random_state(), warnings.catch_warnings(), torch.no_grad(), lent_operators(**networks):
        warnings.simplefilter('ignore')
        try:
            model.architecture(*made_batch(size), mode='loss')
        except MissingOperatorError as error:
            return str(error)
        except Exception:
            return None
        try:
            model(*made_batch(size), mode='loss')
        except Exception as error:
            if os.environ.get('MMKD_TRACEBACK') == '1':
                raise
            return f'a training step on a made image fails ({type(error).__name__}): {explain(error)}{hint}'
    return None


def _made_size(model: nn.Module) -> tuple[tuple[int, int], str]:
    """(H, W) px of the made image, and what to add to an error on it.

    Where the student's images need not be as divisible as those of the teacher, this one is not: networks that add maps
    of two strides cell by cell (YOLO's kind) cannot take it.
    """
    size = SIZE if model.distiller.input_size == PROBE_SIZE else model.distiller.input_size
    if not hasattr(model, '_teacher'):
        return size, ''
    own, other = (getattr(m.data_preprocessor, 'pad_size_divisor', 1) for m in (model.architecture, model.teacher))
    if own % other == 0:
        return size, ''
    odd = tuple(side + own for side in size)
    return odd, (
        f'. The teacher pads its images to a multiple of {other} px, the student to one of {own}, and this image has '
        f'{odd[0]}x{odd[1]} px: if that is the reason, give the student data_preprocessor.pad_size_divisor={other}.'
    )
