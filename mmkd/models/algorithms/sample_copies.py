"""Data samples for one more forward on the same batch."""

from typing import Any

from mmengine.structures import BaseDataElement


def copied_samples(data_samples: list[Any]) -> list[Any]:
    """Samples whose fields can be exchanged without a change of the originals; tensors and masks are shared.

    Some losses of MMDetection write into the ground truth that they are given (RTMDet-Ins makes a tensor of its masks),
    so that a second forward on the same samples fails.

    Args:
        data_samples: ground truth and metainfo of each image; what is no `BaseDataElement` is passed on.
    """
    return [_copied(sample) for sample in data_samples]


def _copied(sample: Any) -> Any:
    if not isinstance(sample, BaseDataElement):
        return sample
    copy = sample.clone()
    for name, value in sample.items():
        if isinstance(value, BaseDataElement):
            setattr(copy, name, value.clone())
    return copy
