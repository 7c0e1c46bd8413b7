"""Reads the arguments of a loss from what was recorded in this step."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mmrazor.models.task_modules import RecorderManager
from torch import Tensor, nn

from mmkd.models.distillers.tapped_layers import OverwriteWatch
from mmkd.models.distillers.wiring import RESERVED, Source


class RecordReader:
    """Takes records through their levels, connectors and masks.

    A record that several losses read through the same connector is computed once a step.

    Args:
        recorders: MMRazor's recorder managers; the key says whether it is the student's.
        connectors: connectors by name.
        masks: masks by name.
    """

    def __init__(self, recorders: dict[bool, RecorderManager], connectors: nn.ModuleDict, masks: nn.ModuleDict) -> None:
        self.recorders = recorders
        self.connectors = connectors
        self.masks = masks
        self.watches: dict[tuple[bool, str], OverwriteWatch] = {}

    def record(self, source: Source, where: str) -> Any:
        """What a layer gave, before any connector.

        Raises:
            RuntimeError: the layer did not run, or its output was overwritten in place.
            ValueError: `record_idx` or `data_idx` is not there.
        """
        recorder = self.recorders[source.from_student].get_recorder(source.recorder)
        if not recorder.data_buffer:
            raise RuntimeError(f'{where}: the layer {recorder.source!r} did not run, so nothing was recorded.')
        watch = self.watches.get((source.from_student, source.recorder))
        if watch is not None:
            watch.check(where)
        try:
            if source.record_idx == 'all':
                indices = range(len(recorder.data_buffer))
                record = tuple(recorder.get_record_data(i, source.data_idx) for i in indices)
            else:
                record = recorder.get_record_data(source.record_idx, source.data_idx)
        except AssertionError as error:  # MMRazor's answer to an index that is not there
            raise ValueError(f'{where}: {error}') from error
        if source.levels is not None:
            record = tuple(record[i] for i in source.levels)
        return record

    def convert(self, from_student: bool, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every recorded tensor of one side.

        Raises:
            RuntimeError: an output was overwritten in place before.
        """
        for name, recorder in self.recorders[from_student].recorders.items():
            if not hasattr(recorder, 'recording'):  # of parameters, which belong to the model
                continue
            watch = self.watches.get((from_student, name))
            if watch is not None:
                watch.check(name)
            made: list[Tensor] = []
            recorder.data_buffer[:] = [_changed(record, change, made) for record in recorder.data_buffer]
            if watch is not None:
                watch.versions = [tensor._version for tensor in made]

    def arguments(
        self, sources: dict[str, Source], reserved: Mapping[str, Any], loss: str, cache: dict | None = None
    ) -> dict[str, Any]:
        """Arguments of one loss.

        Args:
            sources: where each comes from.
            reserved: the algorithm's own records.
            loss: the loss's name, for messages.
            cache: values of this step by source.

        Raises:
            RuntimeError: as `record`.
            ValueError: the algorithm does not give a reserved record.
        """
        cache = {} if cache is None else cache
        values = {k: self._value(s, reserved, f'{loss}.{k}', cache) for k, s in sources.items() if s.mask is None}
        for key, source in sources.items():
            if source.mask is not None:
                features = values['preds_S']
                single = isinstance(features, Tensor)
                mask, feats = self.masks[source.mask], (features,) if single else features
                pyramid = (self._pyramid(sources['preds_S'], loss),) if getattr(mask, 'sees_pyramid', False) else ()
                masks = mask(reserved['data_samples'], feats, *pyramid)
                values[key] = masks[0] if single else masks
        return values

    def _pyramid(self, source: Source, loss: str) -> tuple[Tensor, ...] | None:
        """All levels of the record behind `preds_S`, whichever of them its connector gives; None without levels."""
        if source.recorder in RESERVED:
            return None
        record = self.record(replace(source, levels=None), f'{loss}.preds_S')
        maps = isinstance(record, list | tuple) and all(isinstance(one, Tensor) and one.dim() == 4 for one in record)
        return tuple(record) if maps else None

    def _value(self, source: Source, reserved: Mapping[str, Any], where: str, cache: dict) -> Any:
        if source in cache:
            return cache[source]
        if source.recorder in RESERVED:
            if reserved.get(source.recorder) is None:
                raise ValueError(f'{where}: the algorithm gives no {source.recorder!r} for this pair of detectors.')
            value = reserved[source.recorder]
            value = value if source.data_idx is None else value[source.data_idx]
        else:
            value = self.record(source, where)
        if source.connector is not None:
            others = [] if source.other is None else [self._value(source.other, reserved, f'{where}.other', cache)]
            value = self.connectors[source.connector](value, *others)
        if source.connector_idx is not None:
            value = value[source.connector_idx]
        cache[source] = value
        return value


def _changed(value: Any, change: Callable[[Tensor], Tensor], made: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        made.append(change(value))
        return made[-1]
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change, made) for item in value)
    return value
