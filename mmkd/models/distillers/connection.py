"""What a dry forward decides: which levels meet, and the connectors between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmkd.models.apart import own_randomness
from mmkd.models.distillers.record_reader import RecordReader
from mmkd.models.distillers.wiring import Source, Tap, describe, fill_connector, match_levels, select_strides


@dataclass(frozen=True)
class _Plan:
    """What a connector transforms, and what its loss compares that with."""

    source: Source
    own: Tap | None
    other: Tap | None


class Connection:
    """Matches the levels of the records that the reader holds and builds the connectors.

    Args:
        reader: reads the records of the dry forward.
        input_size: (H, W) px of the input that both networks have just seen.

    Attributes:
        taps: description of every record that was read, by side and recorder.
        level_names: names of each loss's levels.
        connectors: names of the connectors that a loss uses.
    """

    def __init__(self, reader: RecordReader, input_size: tuple[int, int]) -> None:
        self.reader = reader
        self.input_size = input_size
        self.taps: dict[tuple[bool, str], Tap | None] = {}
        self.level_names: dict[str, tuple[str, ...]] = {}
        self._plans: dict[str, _Plan] = {}

    @property
    def connectors(self) -> set[str]:
        """Names of the connectors that a loss uses."""
        return set(self._plans)

    def match(self, loss: str, sources: dict[str, Source]) -> dict[str, Source]:
        """The sources of a loss, with the levels that meet.

        Raises:
            ValueError: levels that cannot match, or a connector on records of different shape.
        """
        taps = {}
        for key, source in sources.items():
            if not source.reserved:
                sources[key], tap, whole = self._select(source, f'{loss}.{key}')
                self.taps[source.from_student, source.recorder] = whole
                if tap is not None:
                    taps[key] = tap
        self._match_pair(loss, sources, taps)
        for key, source in sources.items():
            if source.connector is not None:
                other = next((taps[k] for k in taps if k != key), None)
                if source.other is not None:
                    chosen, other, _ = self._select(source.other, f'{loss}.{key}.other')
                    sources[key] = source = replace(source, other=chosen)
                plan = _Plan(source, taps.get(key), other)
                if self._plans.setdefault(source.connector, plan).own != plan.own:
                    raise ValueError(f'The connector {source.connector!r} is used on records of different shape.')
        # a connector that sees both sides gives one map for each level of the other side
        both = 'preds_S' in sources and sources['preds_S'].other is not None
        first = taps.get('preds_T' if both else 'preds_S') or next(iter(taps.values()), None)
        if first is not None:
            self.level_names[loss] = first.names
        return sources

    def _select(self, source: Source, where: str) -> tuple[Source, Tap | None, Tap | None]:
        """A source with its wanted levels, their description, and that of the whole record."""
        if source.reserved:
            return source, None, None
        whole = describe(self.reader.record(source, where), self.input_size)
        if whole is None:
            return source, None, None
        levels = select_strides(whole, source.strides, where)
        return replace(source, levels=levels) if whole.pyramid else source, whole.select(levels), whole

    def _match_pair(self, loss: str, sources: dict[str, Source], taps: dict[str, Tap]) -> None:
        pair = [key for key in ('preds_S', 'preds_T') if key in taps and taps[key].pyramid]
        if len(pair) < 2 or any(sources[key].other is not None for key in pair):
            return
        chosen = match_levels(taps['preds_S'], taps['preds_T'], loss)
        for key, levels in zip(pair, chosen, strict=True):
            kept = sources[key].levels
            sources[key] = replace(sources[key], levels=tuple(kept[i] for i in levels))
            taps[key] = taps[key].select(levels)

    def build(self, name: str, cfg: Any) -> nn.Module:
        """A connector, its channels and strides filled in; of a list, each part for what the part before it gives.

        Raises:
            ValueError: an unknown type, or parts that do not fit each other.
        """
        plan = self._plans[name]
        record = None if plan.source.reserved else self.reader.record(plan.source, name)
        return self._build(name, cfg, record, plan)

    def _build(self, name: str, cfg: Any, record: Any, plan: _Plan) -> nn.Module:
        if not isinstance(cfg, list | tuple):
            return self._build_one(cfg, plan)
        parts = []
        for index, part in enumerate(cfg):
            if parts and record is not None:
                record = _dry_run(parts[-1], record, f'connectors.{name}[{index - 1}]')
                plan = replace(plan, own=describe(record, self.input_size))
            parts.append(self._build(name, part, record, plan))
        return nn.Sequential(*parts)

    def _build_one(self, cfg: Mapping, plan: _Plan) -> nn.Module:
        cls = ROOT_MODELS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
        if cls is None:
            raise ValueError(f'No connector is registered as {cfg["type"]!r} (mmkd.* or mmrazor.*).')
        return ROOT_MODELS.build(fill_connector(cfg, cls, plan.own, plan.other))


def _dry_run(part: nn.Module, record: Any, where: str) -> Any:
    """What a part of a connector makes of a record; leaves its statistics and the random state as they are."""
    training = part.training
    try:
        with torch.no_grad(), own_randomness():
            return part.eval()(record)
    except (ValueError, RuntimeError, AssertionError, TypeError, IndexError) as error:
        raise ValueError(f'{where}, {type(part).__name__}, does not fit its record: {error}') from error
    finally:
        part.train(training)
