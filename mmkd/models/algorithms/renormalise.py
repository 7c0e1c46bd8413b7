"""From the student's normalised batch to the teacher's own normalisation."""

from typing import Any

import torch
from torch import Tensor, nn


def _constants(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool, float]:
    """Mean and deviation (3, 1, 1) in the order of the preprocessor's output, whether that is RGB, and padding."""
    mean = getattr(preprocessor, 'mean', None)
    std = getattr(preprocessor, 'std', None)
    mean = torch.zeros(3, 1, 1) if mean is None else mean.detach().float().cpu()
    std = torch.ones(3, 1, 1) if std is None else std.detach().float().cpu()
    # Both flags mean "reverse the channels"; images are read as BGR.
    swapped = bool(getattr(preprocessor, '_channel_conversion', False))
    return mean, std, swapped, float(getattr(preprocessor, 'pad_value', 0))


class Renormalise:
    """Gives the teacher the same augmented images in its own normalisation.

    x_teacher = (x_student * std_student + mean_student, channels reordered, - mean_teacher) / std_teacher inside the
    images, and the teacher's own padding value outside. Nothing is computed where both agree.

    Args:
        student: the data preprocessor that made the batch.
        teacher: the data preprocessor the teacher was trained with.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        mean_s, std_s, swap_s, pad_s = _constants(student)
        mean_t, std_t, swap_t, pad_t = _constants(teacher)
        self.flip = swap_s != swap_t
        if self.flip:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.scale, self.shift = std_s / std_t, (mean_s - mean_t) / std_t
        self.pad_value = pad_t
        same = torch.allclose(self.scale, torch.ones_like(self.scale)) and not self.shift.abs().max() > 1e-6
        self.needed = self.flip or not same or pad_s != pad_t

    def __call__(self, inputs: Tensor, data_samples: list[Any] | None) -> Tensor:
        """Map a batch (N, 3, H, W); the images' sizes come from `img_shape` (H, W) of the data samples."""
        if not self.needed:
            return inputs
        if self.scale.device != inputs.device:  # once; a copy at every step would wait for the device
            self.scale, self.shift = self.scale.to(inputs.device), self.shift.to(inputs.device)
        images = inputs.flip(1) if self.flip else inputs
        out = images * self.scale.to(inputs.dtype) + self.shift.to(inputs.dtype)
        for image, sample in zip(out, data_samples or [], strict=False):
            height, width = sample.metainfo.get('img_shape', image.shape[-2:])[:2]
            image[:, height:] = self.pad_value
            image[:, :, width:] = self.pad_value
        return out
