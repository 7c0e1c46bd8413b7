"""A forward that stops behind the last layer that somebody records."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


class _Reached(Exception):
    """Every recorded layer has run as often as it does in a whole forward."""


class TappedForward:
    """Runs a network only as far as its last recorded layer.

    A probe finds out how often each recorded layer runs, and whether the features alone (`extract_feat`) reach all of
    them; later forwards stop at the last of these runs, so that heads, proposals and post-processing are not computed
    unless they are recorded. Create it after the recorders are attached: its hooks must run behind theirs.

    Args:
        model: the network.
        sources: names of the recorded layers.
    """

    def __init__(self, model: nn.Module, sources: Iterable[str]) -> None:
        self.model = model
        self.sources = tuple(sources)
        self._runs: Counter = Counter()
        self._needed: Counter | None = None
        self.whole = False
        self.output: Any = None
        self._handles = [
            model.get_submodule(source).register_forward_hook(partial(self._count, source)) for source in self.sources
        ]

    def _count(self, source: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._runs[source] += 1
        if self._needed is not None and self._runs == self._needed:
            raise _Reached

    def probe(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement],
        *,
        forget: Callable[[], None],
        whole: bool = False,
    ) -> None:
        """Run once and remember how far a forward must go.

        Args:
            inputs: (N, 3, H, W) any batch.
            data_samples: metainfo of its images.
            forget: called before each attempt, so that recorders do not keep the records of one that was too short.
            whole: do not try the features alone.

        Raises:
            ValueError: a recorded layer does not run in a forward.
        """
        self._needed = None
        for self.whole in (False, True):
            if not self.whole and (whole or not hasattr(self.model, 'extract_feat')):
                continue
            self._runs.clear()
            forget()
            self.output = self._forward(inputs, data_samples)
            silent = [source for source in self.sources if not self._runs[source]]
            if not silent:
                break
        else:
            raise ValueError(
                f'The recorded layers {silent} of {type(self.model).__name__} never run in its forward, so nothing '
                'would be distilled from them. Containers such as a ModuleList are not called; name a layer inside.'
            )
        self._needed = Counter({source: n for source, n in self._runs.items() if n})

    def _forward(self, inputs: Tensor, data_samples: list | None) -> Any:
        if not self.whole:
            return self.model.extract_feat(inputs)
        if getattr(type(self.model), '_forward', None) is SingleStageDetector._forward:
            # its 'tensor' mode calls the head's `forward`, which passes by the hooks of the head itself
            return self.model.bbox_head(self.model.extract_feat(inputs))
        return self.model(inputs, data_samples, mode='tensor')

    def __call__(self, inputs: Tensor, data_samples: list | None) -> Any:
        """Forward as far as needed; the recorders keep what they record.

        Returns:
            The output, or None where the forward was stopped before its end.
        """
        self._runs.clear()
        with suppress(_Reached):
            return self._forward(inputs, data_samples)
        return None

    def outputs(self, inputs: Tensor, data_samples: list | None) -> list[Tensor]:
        """What the recorded layers give in a forward without gradients, flattened, in float32."""
        found: list[Tensor] = []
        handles = [
            # before the hook that stops the network
            self.model.get_submodule(source).register_forward_hook(
                lambda module, args, out: found.extend(tensors_of(out)), prepend=True
            )
            for source in self.sources
        ]
        try:
            with torch.no_grad():
                self(inputs, data_samples)
        finally:
            for handle in handles:
                handle.remove()
        return [tensor.float() for tensor in found]

    def never_stop(self) -> None:
        """Run every forward to its end, for the sake of what it returns."""
        self._needed = None

    def close(self) -> None:
        """Take the hooks off the network (one that also runs for its own sake, as a student does)."""
        for handle in self._handles:
            handle.remove()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [value] if isinstance(value, Tensor) else []


def blank_samples(inputs: Tensor) -> list[BaseDataElement]:
    """Data samples without ground truth for a dry forward on a batch of shape (N, 3, H, W)."""
    size = tuple(inputs.shape[-2:])
    meta = dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0), img_id=0
    )
    return [BaseDataElement(metainfo=meta) for _ in range(len(inputs))]
