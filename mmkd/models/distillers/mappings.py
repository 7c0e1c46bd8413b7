"""`loss_forward_mappings` read and checked against the losses' signatures before any network is built."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from mmkd.models.distillers.wiring import RESERVED, Source
from mmkd.near_names import nearest

SIDES = {'student_recorders': True, 'teacher_recorders': False}


class MappingParser:
    """Turns the entries of `loss_forward_mappings` into `Source`s.

    Args:
        distiller: has `distill_losses`, `connector_cfgs` and `masks` by name.
        recorders: the recorders' names of each side.
    """

    def __init__(self, distiller: Any, recorders: dict[str, set[str]]) -> None:
        self.losses = distiller.distill_losses
        self.connectors = distiller.connector_cfgs
        self.masks = distiller.masks
        self.recorders = recorders

    def parse(self, mappings: Mapping) -> dict[str, dict[str, Source]]:
        """Read all mappings.

        Raises:
            TypeError: an entry has the wrong type.
            ValueError: a loss without mapping, a mapping without loss, an unknown name, or an argument that the
                loss's `forward` does not have or lacks.
        """
        for name in mappings:
            if name not in self.losses:
                raise ValueError(
                    f'loss_forward_mappings names the unknown loss {name!r}; {nearest(name, self.losses)}.'
                )
        for name in self.losses:
            if name not in mappings:
                raise ValueError(f'The loss {name!r} has no entry in loss_forward_mappings and would never be called.')
        return {name: self._parse_loss(name, entries) for name, entries in mappings.items()}

    def _parse_loss(self, loss: str, entries: Mapping) -> dict[str, Source]:
        self._check_arguments(loss, entries)
        sources = {key: Source.parse(entry, f'loss_forward_mappings.{loss}.{key}') for key, entry in entries.items()}
        for key, source in sources.items():
            if source.mask is not None and ('preds_S' not in sources or sources['preds_S'].mask is not None):
                raise ValueError(
                    f'loss_forward_mappings.{loss}.{key} is a mask for the maps of preds_S, but the loss '
                    f'{type(self.losses[loss]).__name__} has {", ".join(k for k in entries if k != key)} instead.'
                )
            self._check_names(source, f'loss_forward_mappings.{loss}.{key}')
        return sources

    def _check_arguments(self, loss: str, entries: Mapping) -> None:
        module = self.losses[loss]
        parameters = signature(module.forward).parameters
        open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
        for key in entries:
            if key not in parameters and not open_ended:
                raise ValueError(
                    f'{type(module).__name__} ({loss}) takes no argument {key!r}; {nearest(key, parameters)}.'
                )
        for key, parameter in parameters.items():
            variadic = parameter.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
            if parameter.default is Parameter.empty and not variadic and key not in entries:
                raise ValueError(f'The mapping of {loss} lacks the argument {key!r}.')

    def _check_names(self, source: Source, where: str) -> None:
        if source.mask is not None:
            if source.mask not in self.masks:
                raise ValueError(f'{where} names the unknown mask {source.mask!r}; {nearest(source.mask, self.masks)}.')
            return
        side = 'student_recorders' if source.from_student else 'teacher_recorders'
        if source.recorder not in RESERVED and source.recorder not in self.recorders[side]:
            options = [*self.recorders[side], *RESERVED]
            raise ValueError(f'{where}: {side} has no {source.recorder!r}; {nearest(source.recorder, options)}.')
        if source.connector is not None and source.connector not in self.connectors:
            raise ValueError(
                f'{where} names the unknown connector {source.connector!r}; '
                f'{nearest(source.connector, self.connectors)}.'
            )
        if source.other is not None:
            self._check_names(source.other, f'{where}.other')
