"""What a detector costs to use: parameters, multiply-adds and time of one image."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn


def load_student(run_config: Path, checkpoint: str | None = None) -> nn.Module:
    """The plain detector of a run, in eval mode on the CPU.

    Args:
        run_config: `config.py` of the run; of a distilled run, the student is taken from its algorithm.
        checkpoint: Weights; initial ones are random when None.

    Returns:
        The detector.

    Raises:
        RuntimeError: Where the weights do not fit.
    """
    cfg = Config.fromfile(run_config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = cfg.model.get('architecture', cfg.model)
    model = MODELS.build(model_cfg)
    if checkpoint is None:
        model.init_weights()
    else:  # nothing is fetched that would be replaced
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    return model.eval()


def validation_samples(run_config: Path, count: int, dataset: dict | None = None) -> list[dict]:
    """The first images of the validation set, as the model's `test_step` takes them.

    Args:
        run_config: `config.py` of a run.
        count: How many.
        dataset: Config of the validation set, where it has been moved since the run; the pipeline is the run's.

    Returns:
        Dicts of `inputs` (one (3, H, W) uint8 tensor) and `data_samples` with the ground truth.
    """
    cfg = Config.fromfile(run_config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    trained = cfg.val_dataloader.dataset
    found = DATASETS.build(dict(dataset, pipeline=trained.pipeline) if dataset else trained)
    return [found[index] for index in range(min(count, len(found)))]


def collate(sample: dict) -> dict:
    """A batch of one."""
    return {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}


def model_cost(model: nn.Module, samples: list[dict], repeats: int = 2) -> dict[str, float]:
    """Parameters, GFLOPs and ms an image.

    Args:
        model: Detector in eval mode.
        samples: Images to measure on; the first gives the size for the GFLOPs.
        repeats: Times that each is run; the median counts, after one run to warm up.

    Returns:
        `parameters`; `gflops`: multiply-adds / 1e9 of the padded image, as MMDetection counts them; `ms`: batch 1,
        pre- and post-processing of tensors included, loading not; on the GPU where there is one.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    if torch.cuda.is_available():
        model = model.to('cuda')
    batches = [collate(sample) for sample in samples]
    times = []
    with torch.no_grad():
        model.test_step(batches[0])
        wait()
        for batch in batches * repeats:
            start = time.perf_counter()
            model.test_step(batch)
            wait()
            times.append(time.perf_counter() - start)
    return {
        'parameters': sum(p.numel() for p in model.parameters()),
        'gflops': round(_multiply_adds(model, batches[0]) / 1e9, 3),
        'ms': round(1000 * statistics.median(times), 2),
    }


def _multiply_adds(model: nn.Module, batch: dict) -> float:
    data = model.data_preprocessor(batch)
    forward = model.forward
    model.forward = lambda inputs: forward(inputs, data['data_samples'], mode='tensor')
    try:
        found = get_model_complexity_info(model, inputs=(data['inputs'],), show_table=False, show_arch=False)
    finally:
        del model.forward
    return float(np.asarray(found['flops']))
