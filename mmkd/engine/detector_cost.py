"""What a detector costs to use: parameters, multiply-adds and time of one image.

Shapes: `N` images, `H`, `W` px of the padded network input.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmkd.models.algorithms.tapped_forward import blank_samples


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(model: nn.Module, shape: tuple[int, int]) -> float:
    """Multiply-adds / 1e9 of one image, as MMDetection counts them; the image is really computed.

    Args:
        model: a detector in eval mode.
        shape: (H, W) of the input.
    """
    device = next(model.parameters()).device
    inputs = torch.zeros(1, 3, *shape, device=device)
    samples, forward = blank_samples(inputs), model.forward
    model.forward = lambda images: forward(images, samples, mode='tensor')
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what adds nothing to the count (BatchNorm, activations) is listed there
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # of the tracer, about shapes that are fixed here anyway
            found = get_model_complexity_info(model, inputs=(inputs,), show_table=False, show_arch=False)
    finally:
        del model.forward
        logging.disable(before)
    return float(np.asarray(found['flops'])) / 1e9


def milliseconds(model: nn.Module, batches: Sequence[dict], repeats: int = 3) -> float:
    """Median time of one image from the loaded picture to boxes: pre- and post-processing included, loading not.

    Args:
        model: a detector in eval mode, on the device to measure.
        batches: batches of one image, as `test_step` takes them.
        repeats: how often each is run, after one run to warm up.

    Raises:
        ValueError: there is no batch.
    """
    if not batches:
        raise ValueError('At least one image is needed to measure a time.')
    times = []
    with torch.no_grad():
        for index, batch in enumerate([batches[0], *list(batches) * repeats]):
            _finish()
            start = time.perf_counter()
            model.test_step(batch)
            _finish()
            if index:
                times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
