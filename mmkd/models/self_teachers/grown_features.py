"""The place where a self-teacher is joined to its student: a backbone that refines features it is given.

Shapes: `N` images, `C` channels, `H, W` cells of a level.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd.registry import MODELS


class GrownFeatures(nn.Module):
    """Takes a network's backbone's place and returns the student's features, refined.

    With it a network of the student's own class becomes a self-teacher, whatever the class: it asks its backbone for
    features of the images and gets those of the student, with their gradient.

    Args:
        refine: the refining network or its config; `in_channels` is filled in where the config leaves it out.
        in_channels: C of each level of the student's features.
        coarse_first: the student gives its coarsest level first (YOLOv3); `refine` gets the finest first all the same.

    Raises:
        TypeError: `refine` is neither.
    """

    def __init__(self, *, refine: dict | nn.Module, in_channels: Sequence[int], coarse_first: bool = False) -> None:
        super().__init__()
        if not isinstance(refine, dict | nn.Module):
            raise TypeError(f'refine must be a module or its config, got {type(refine).__name__}.')
        self.step = -1 if coarse_first else 1
        in_channels = tuple(in_channels)[:: self.step]
        self.refine = refine if isinstance(refine, nn.Module) else MODELS.build({'in_channels': in_channels, **refine})
        self._given: tuple[Tensor, ...] | None = None

    def give(self, features: Any) -> None:
        """Hand over the student's features of this step, or None to forget them.

        Raises:
            TypeError: they are no tuple of levels.
        """
        if features is not None and not isinstance(features, list | tuple):
            raise TypeError(f'features must be a tuple with one map a level, got {type(features).__name__}.')
        self._given = None if features is None else tuple(features)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Refined features; the images are not looked at.

        Raises:
            RuntimeError: no features were given in this step.
        """
        if self._given is None:
            raise RuntimeError('GrownFeatures was given no features of the student in this step.')
        return self.refine(self._given[:: self.step])[:: self.step]
