"""Care for the layers whose output is recorded: their name, and that nobody overwrites it in place."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mmkd.near_names import nearest


def check_layers(model: nn.Module, sources: Iterable[str], side: str) -> None:
    """Refuse names of layers that the model does not have.

    Raises:
        ValueError: names the layer, the side and the nearest layers.
    """
    layers = {name: module for name, module in model.named_modules() if name}
    # containers are never called, so that nothing could be recorded from them
    called = [name for name, module in layers.items() if not isinstance(module, nn.ModuleList | nn.ModuleDict)]
    for source in sources:
        if source and source not in layers:
            raise ValueError(f'The {side} {type(model).__name__} has no layer {source!r}; {nearest(source, called)}.')


def spare_output(model: nn.Module, source: str) -> None:
    """Make the neighbours of a tapped layer work out of place, so that its output survives until the loss."""
    parent = model.get_submodule(source.rpartition('.')[0])
    for module in parent.children():
        if getattr(module, 'inplace', False) is True:
            module.inplace = False


class OverwriteWatch:
    """Notices when a recorded tensor is overwritten in place before the loss reads it.

    Args:
        recorder: MMRazor recorder of a module's outputs.
        model: the network that the recorder listens to.
    """

    def __init__(self, recorder: Any, model: nn.Module) -> None:
        self.recorder = recorder
        self.versions: list[int] = []
        model.get_submodule(recorder.source).register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self.recorder.recording:
            if len(self.recorder.data_buffer) <= 1:
                self.versions.clear()
            self.versions.extend(tensor._version for tensor in _tensors(outputs))

    def check(self, where: str) -> None:
        """Compare with the versions at recording time.

        Raises:
            RuntimeError: a later layer changed the recorded values.
        """
        now = [tensor._version for tensor in _tensors(self.recorder.data_buffer)]
        if now != self.versions:
            raise RuntimeError(
                f'{where}: the output of {self.recorder.source!r} was overwritten in place after it was recorded. '
                'Record the layer after the in-place operation instead.'
            )


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
