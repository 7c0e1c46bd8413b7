"""A training batch as plain tensors in a file, so that a step that went wrong can be run again."""

from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd.compat import load_checkpoint_file

_PLAIN = (str, int, float, bool, tuple, list)


def _plain_instances(instances: InstanceData) -> dict[str, Tensor]:
    values = {key: getattr(value, 'tensor', value) for key, value in instances.items()}
    return {key: value.detach().cpu() for key, value in values.items() if isinstance(value, Tensor)}


def save_batch(path: Path, inputs: Tensor, samples: list[Any], model: nn.Module, **facts: Any) -> None:
    """Write a batch, the weights it met, and what is known about it; readable without executing code.

    Args:
        path: file to write.
        inputs: (N, 3, H, W) preprocessed batch.
        samples: data samples; their boxes and labels are kept, masks are not.
        model: the algorithm, in the state in which the batch meets it.
        facts: plain values that say what happened.
    """
    images = []
    for sample in samples:
        meta = {key: value for key, value in sample.metainfo.items() if isinstance(value, _PLAIN)}
        instances = {
            key: _plain_instances(value) for key, value in sample.all_items() if isinstance(value, InstanceData)
        }
        images.append(dict(meta=meta, instances=instances))
    apart = {name: module.saved_state() for name, module in getattr(model, 'apart_modules', dict)().items()}
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    torch.save(dict(facts, inputs=inputs.detach().cpu(), images=images, state_dict=state, apart=apart), path)


def load_batch(path: str | Path) -> tuple[Tensor, list[DetDataSample], dict[str, Any]]:
    """Inputs, data samples and the rest of what `save_batch` wrote.

    To run the step again: build the model of the run's configuration, `model.load_state_dict(rest['state_dict'])`,
    `module.load_saved_state(...)` for each of `rest['apart']`, then `model(inputs, samples, mode='loss')`.
    """
    content = load_checkpoint_file(str(path))
    samples = []
    for image in content.pop('images'):
        sample = DetDataSample(metainfo=image['meta'])
        for name, values in image['instances'].items():
            setattr(sample, name, InstanceData(**values))
        samples.append(sample)
    return content.pop('inputs'), samples, content
