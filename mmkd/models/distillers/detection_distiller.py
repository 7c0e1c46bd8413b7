"""`DetectionDistiller`: which records meet in which loss, through which connectors, with which weight."""

from collections.abc import Mapping
from typing import Any

import mmkd.compat  # noqa: F401  (makes mmrazor importable)

# isort: split
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmrazor.models.distillers import ConfigurableDistiller
from torch import Tensor, nn

from mmkd.models.apart import SavedApart, drawn_apart
from mmkd.models.autograd_graph import hides_leaves, leaf_of, nodes_behind
from mmkd.models.distillers.connection import Connection
from mmkd.models.distillers.loss_precision import compute_loss
from mmkd.models.distillers.mappings import SIDES, MappingParser
from mmkd.models.distillers.record_reader import RecordReader
from mmkd.models.distillers.schedule import WeightSchedule
from mmkd.models.distillers.tapped_layers import OverwriteWatch, check_layers, spare_output
from mmkd.models.distillers.wiring import Source, Tap, all_sources, reads_teacher
from mmkd.near_names import nearest
from mmkd.registry import MODELS


@MODELS.register_module()
class DetectionDistiller(SavedApart, ConfigurableDistiller):
    """MMRazor's `ConfigurableDistiller` with wiring that is checked before training.

    Beyond the host: layers are matched by stride, channels are read from the models, a connector may see both
    sides (`other=`), masks come from data samples, weights follow schedules, a loss whose weight is 0 is not computed,
    and mistakes are errors that name the nearest right word. A loss that is built with `loss_weight=0` costs nothing at
    all: its connectors are not built, and no layer runs or is recorded for its sake.

    Args:
        student_recorders: recorders of the student, as in MMRazor; `type='ModuleOutputs'` needs no scope.
        teacher_recorders: recorders of the teacher.
        connectors: configurations by name (a list is a sequence); `in_channels`, `out_channels`, `in_strides`,
            `out_strides` left out or None are filled from the two models.
        masks: configurations by name of masks made from data samples.
        distill_losses: configurations by name; every name contains `loss`.
        loss_forward_mappings: for each loss, its arguments and their `wiring.Source`.
        schedules: for each loss, arguments of `WeightSchedule`; a loss without one has factor 1.

    Raises:
        TypeError: an entry has the wrong type.
        ValueError: a name that is not there, a loss without mapping, or a name without `loss`.
    """

    def __init__(
        self,
        student_recorders: dict | None = None,
        teacher_recorders: dict | None = None,
        connectors: dict | None = None,
        masks: dict | None = None,
        distill_losses: dict | None = None,
        loss_forward_mappings: dict | None = None,
        schedules: dict | None = None,
    ) -> None:
        with DefaultScope.overwrite_default_scope('mmrazor'):
            super().__init__(student_recorders=student_recorders, teacher_recorders=teacher_recorders)
        self.connector_cfgs = dict(connectors or {})
        self.masks = nn.ModuleDict({name: ROOT_MODELS.build(cfg) for name, cfg in (masks or {}).items()})
        for name in distill_losses or {}:
            if 'loss' not in name:
                raise ValueError(f'The name of a distillation loss must contain "loss", got {name!r}.')
        self.distill_losses = nn.ModuleDict(
            {name: ROOT_MODELS.build(cfg) for name, cfg in (distill_losses or {}).items()}
        )
        self.schedules = self._build_schedules(schedules or {})
        parser = MappingParser(self, {name: set(self.recorders(side).recorders) for name, side in SIDES.items()})
        mappings = parser.parse(loss_forward_mappings or {})
        self.mappings = {name: sources for name, sources in mappings.items() if self._weight(name) != 0}
        self.off = {name: sources for name, sources in mappings.items() if name not in self.mappings}
        self._drop_recorders_of_losses_that_are_off()
        self.level_names: dict[str, tuple[str, ...]] = {}
        self.taps: dict[tuple[bool, str], Tap | None] = {}
        self.input_size: tuple[int, int] | None = None  # (H, W) px of the dry forward, None before it
        self.factors, self.step = dict.fromkeys(self.distill_losses, 1.0), 0
        self.reader = RecordReader({side: self.recorders(side) for side in SIDES.values()}, self.connectors, self.masks)
        self._unread_parameters: dict[tuple[str, ...], list[nn.Parameter]] = {}
        self.register_buffer('_zero', torch.zeros(()), persistent=False)

    def _weight(self, loss: str) -> float:
        return getattr(self.distill_losses[loss], 'loss_weight', 1.0)

    def _drop_recorders_of_losses_that_are_off(self) -> None:
        off, on = ({(s.from_student, s.recorder) for s in all_sources(m)} for m in (self.off, self.mappings))
        for side, name in off - on:
            self.recorders(side).recorders.pop(name, None)

    def recorders(self, from_student: bool) -> Any:
        """MMRazor's recorder manager of one side."""
        return self.student_recorders if from_student else self.teacher_recorders

    def _build_schedules(self, schedules: Mapping) -> dict[str, WeightSchedule]:
        for name in schedules:
            if name not in self.distill_losses:
                raise ValueError(f'schedules names the unknown loss {name!r}; {nearest(name, self.distill_losses)}.')
        return {name: WeightSchedule(**dict(cfg)) for name, cfg in schedules.items()}

    def module_sources(self, from_student: bool) -> list[str]:
        """Names of the layers whose inputs or outputs are recorded on one side."""
        recorders = self.recorders(from_student).recorders.values()
        return [r.source for r in recorders if hasattr(r, 'recording') and hasattr(r, 'forward_hook')]

    def _prepare(self, model: nn.Module, from_student: bool) -> None:
        side = self.recorders(from_student)
        check_layers(model, self.module_sources(from_student), 'student' if from_student else 'teacher')
        side.initialize(model)
        for name in side.recorders:
            self._watch(model, from_student, name)

    def _watch(self, model: nn.Module, from_student: bool, name: str) -> None:
        recorder = self.recorders(from_student).recorders[name]
        if type(recorder).__name__ == 'ModuleOutputsRecorder' and recorder.source:
            spare_output(model, recorder.source)
            self.reader.watches[from_student, name] = OverwriteWatch(recorder, model)

    def prepare_from_student(self, model: nn.Module) -> None:
        """Attach the student's recorders.

        Raises:
            ValueError: a layer does not exist; the message gives the nearest names.
        """
        self._prepare(model, from_student=True)

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Attach the teacher's recorders.

        Raises:
            ValueError: a layer does not exist; the message gives the nearest names.
        """
        self._prepare(model, from_student=False)

    def listen_again(self, model: nn.Module, from_student: bool) -> None:
        """Attach the recorders of layers that were exchanged since.

        MMEngine's Runner does so with BatchNorm layers (`sync_bn`, and `SyncBN` in a single process).
        """
        for name, recorder in self.recorders(from_student).recorders.items():
            if not hasattr(recorder, 'forward_hook'):
                continue
            hooks = model.get_submodule(recorder.source)._forward_hooks.values()
            if not any(getattr(hook, '__self__', None) is recorder for hook in hooks):
                recorder.prepare_from_model(model)
                self._watch(model, from_student, name)

    def connect(self, input_size: tuple[int, int]) -> None:
        """Match levels, build the connectors and try the losses on the records of a dry forward.

        Args:
            input_size: (H, W) px of the input that both networks have just seen.

        Raises:
            ValueError: levels or channels that cannot match; names the loss and both sides.
        """
        self.input_size = input_size
        connection = Connection(self.reader, input_size)
        for loss, sources in self.mappings.items():
            self.mappings[loss] = connection.match(loss, sources)
        self.taps, self.level_names = connection.taps, connection.level_names
        for name, cfg in self.connector_cfgs.items():
            if name in connection.connectors:
                self.connectors[name] = connection.build(name, cfg)
            elif name not in {source.connector for source in all_sources(self.off)}:
                raise ValueError(f'The connector {name!r} is used by no loss and would never be trained.')
        self._try_losses()
        self.release()

    def _try_losses(self) -> None:
        """Run every loss that needs records alone once, so that shapes are wrong now and not at iteration 1."""
        training = self.training
        self.eval()
        for loss, sources in self.mappings.items():
            required = [s for k, s in sources.items() if k not in ('mask', 'labels', 'avg_factor')]
            if any(s.reserved or (s.other is not None and s.other.reserved) for s in required) or 'labels' in sources:
                continue
            kept = {k: s for k, s in sources.items() if not s.reserved}
            try:
                with torch.no_grad():
                    self._compute(loss, self.reader.arguments(kept, {}, loss))
            except (ValueError, RuntimeError, AssertionError, TypeError, IndexError) as error:
                shapes = {k: self._shape_text(s, loss) for k, s in kept.items()}
                raise ValueError(f'{loss} does not fit its records {shapes}: {error}') from error
        self.train(training)

    def _shape_text(self, source: Source, loss: str) -> str:
        record = self.reader.record(source, loss)
        maps = record if isinstance(record, list | tuple) else [record]
        side = 'student' if source.from_student else 'teacher'
        return f'{side} ' + ', '.join(str(tuple(getattr(m, 'shape', ()))) for m in maps)

    def begin_step(self, epoch: int, iteration: int) -> bool:
        """Set the factors of this step; returns whether the teacher is needed.

        Raises:
            ValueError: a loss that was built with weight 0 (and so is not wired) has another one now.
        """
        self.step = iteration
        for loss in self.off:
            if self._weight(loss) != 0:
                raise ValueError(f'{loss} was built with loss_weight=0 and is not wired; set its weight in the config.')
        for loss in self.distill_losses:
            self.factors[loss] = self.schedules[loss].factor(epoch, iteration) if loss in self.schedules else 1.0
        return any(
            self.active(loss) and any(reads_teacher(source) for source in sources.values())
            for loss, sources in self.mappings.items()
        )

    def active(self, loss: str) -> bool:
        """Whether the loss has a weight other than 0 in this step."""
        return loss in self.mappings and self.factors[loss] * self._weight(loss) != 0

    def _parts(self, loss: str) -> list[nn.Module]:
        names = {part.connector for source in self.mappings[loss].values() for part in (source, source.other) if part}
        return [self.distill_losses[loss], *(self.connectors[name] for name in names if name is not None)]

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters of connectors and losses that no active loss trains in this step."""
        active = tuple(loss for loss in self.mappings if self.active(loss))
        busy = {p for loss in active for part in self._parts(loss) for p in part.parameters()}
        busy -= set(self._unread_parameters.get(active, []))
        return [p for p in self.parameters() if p.requires_grad and p not in busy]

    def untrained_connectors(self) -> list[str]:
        """Names of connectors of which no parameter had a gradient in the steps up to now: none ever will."""
        unread = {p for found in self._unread_parameters.values() for p in found}
        own = {name: [p for p in module.parameters() if p.requires_grad] for name, module in self.connectors.items()}
        return [name for name, parameters in own.items() if parameters and unread.issuperset(parameters)]

    def _unread(self, losses: Mapping[str, Tensor]) -> list[nn.Parameter]:
        """Parameters of active parts that no loss reads, such as a branch of a connector; found once."""
        active = tuple(loss for loss in self.mappings if self.active(loss))
        if active not in self._unread_parameters and torch.is_grad_enabled():
            parts = (part for loss in active for part in self._parts(loss))
            busy = dict.fromkeys(p for part in parts for p in part.parameters() if p.requires_grad)
            nodes = list(nodes_behind(losses.values())) if busy else []
            read = {id(leaf_of(node)) for node in nodes}
            unread = [p for p in busy if id(p) not in read]
            self._unread_parameters[active] = [] if any(map(hides_leaves, nodes)) else unread
        return self._unread_parameters.get(active, [])

    @drawn_apart
    def compute_distill_losses(self, reserved: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Every distillation loss of this step, one entry a level where the loss gives several.

        Args:
            reserved: `data_samples`, `rois` and `labels` of the step, where the algorithm has them.

        Returns:
            Scalars by name (`loss_ssim_p3`); a loss that is off gives 0 and keeps its parameters in the graph.

        Raises:
            RuntimeError: a recorded layer did not run, or its output was overwritten.
        """
        cache: dict[Source, Any] = {}
        losses = dict.fromkeys(self.off, self._zero)
        for loss, sources in self.mappings.items():
            if not self.active(loss):
                losses[loss] = self._zero
                continue
            value = self._compute(loss, self.reader.arguments(sources, reserved or {}, loss, cache))
            losses.update(self._named(loss, value))
        idle = dict.fromkeys([*self.idle_parameters(), *self._unread(losses)])
        if idle:  # several processes need every parameter in the graph of every step
            first = next(iter(losses))
            losses[first] = losses[first] + 0 * sum(p.sum() for p in idle)
        return losses

    def _compute(self, loss: str, arguments: Mapping[str, Any]) -> Any:
        return compute_loss(self.distill_losses[loss], arguments, self._zero.device)

    def _named(self, loss: str, value: Any) -> dict[str, Tensor]:
        factor = self.factors[loss]
        if isinstance(value, Tensor):
            return {loss: value if factor == 1 else factor * value}
        names = self.level_names.get(loss, ())
        names = names if len(names) == len(value) else tuple(str(i) for i in range(len(value)))
        return {f'{loss}_{name}': p if factor == 1 else factor * p for name, p in zip(names, value, strict=True)}

    def release(self, *sides: bool) -> None:
        """Forget the records of this step, and with them its graph; of both sides where none is named."""
        for side in sides or SIDES.values():
            for recorder in self.recorders(side).recorders.values():
                recorder.reset_data_buffer()
