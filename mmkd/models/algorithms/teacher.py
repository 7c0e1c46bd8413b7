"""The frozen network a student learns from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmkd.compat import fetch_checkpoint
from mmkd.models.algorithms.cheap_teacher import make_cheap, relative_difference
from mmkd.models.algorithms.checkpoint_state import file_sha256, load_strictly
from mmkd.models.algorithms.model_config import ModelSource, load_model_source
from mmkd.models.algorithms.renormalise import Renormalise
from mmkd.models.algorithms.roi_forward import RoIForward
from mmkd.models.algorithms.tapped_forward import TappedForward, blank_samples
from mmkd.models.algorithms.teacher_options import TeacherOptionError, split_teacher
from mmkd.models.apart import own_randomness


class Teacher:
    """A frozen network: eval in every module, no gradients, in no checkpoint, no optimiser and no EMA copy.

    Not a `nn.Module` on purpose: what holds it does not list it among its parameters or children.

    Its options (`TeacherOptions`) are applied at the first step: until then it is the plain float32 network that was
    loaded, which checks and inheriting students read.

    Args:
        config: `'pkg::config'`, a path, a dictionary or a built model, or `dict(config=..., **options)`.
        checkpoint: path or URL; None takes the weights that MMDetection's metafile lists for the configuration.
        strict: refuse missing, unexpected and wrongly shaped keys.

    Raises:
        FileNotFoundError: the configuration does not exist.
        TypeError: an option has the wrong type.
        ValueError: no checkpoint is given and none is published, or an unknown option.
    """

    def __init__(self, config: str | Mapping[str, Any] | BaseModel, checkpoint: str | None, *, strict: bool) -> None:
        config, self.options = split_teacher(config)
        self.settled = not self.options
        self.strict = strict
        self.loaded = isinstance(config, BaseModel) and checkpoint is None
        self.sha256: str | None = None
        if isinstance(config, BaseModel):
            self.source, self.model = ModelSource({}, type(config).__name__), config
        else:
            self.source = load_model_source(config)
            with own_randomness():
                self.model = ROOT_MODELS.build(copy.deepcopy(self.source.model))
        self.checkpoint = checkpoint or self.source.weights
        if self.checkpoint is None and not self.loaded:
            raise ValueError(
                f'No weights are published for the teacher {self.source.name}; give its own: '
                'teacher_ckpt=<path or URL>.'
            )
        self.model.requires_grad_(False).eval()
        self._forward: TappedForward | None = None
        self._on_rois: RoIForward | None = None

    def __deepcopy__(self, memo: dict) -> 'LentTeacher':
        """The same teacher: EMA and other copies of the student share it, and must not move it."""
        return LentTeacher(self)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Another device or precision for the network, as `nn.Module._apply` does it."""
        self.model._apply(change)

    def set_device(self, device: torch.device) -> None:
        """Where the network's preprocessor puts images."""
        self.model._set_device(device)

    def load(self) -> None:
        """Load the weights, once.

        Raises:
            FileNotFoundError: the file does not exist or cannot be downloaded.
            CheckpointMismatchError: the file does not fit the configuration.
            mmkd.compat.UnsafeCheckpointError: the file is damaged or wants to execute code.
        """
        if self.loaded:
            return
        path = fetch_checkpoint(self.checkpoint)
        if path is not None:
            self.sha256 = file_sha256(path)
        checkpoint = CheckpointLoader.load_checkpoint(str(path or self.checkpoint), map_location='cpu', logger='silent')
        device = next(self.model.parameters()).device
        load_strictly(self.model, checkpoint, name=f'{self.source.name} from {self.checkpoint}', strict=self.strict)
        self.model.to(device)
        self.loaded = True
        print_log(f'Teacher {self.source.name} loaded from {self.checkpoint}.', logger='current')

    @property
    def reads_rois(self) -> bool:
        """Whether a layer of the RoI head is recorded, so that the student's proposals are needed."""
        return bool(self._on_rois)

    def tap(self, sources: list[str], inputs: Tensor, forget: Callable[[], None] = lambda: None) -> Any:
        """Find out how far a forward must go to reach all recorded layers; attach the recorders first.

        Args:
            sources: names of the recorded layers.
            inputs: (N, 3, H, W) any batch.
            forget: as in `TappedForward.probe`.

        Returns:
            The features, where `reads_rois`.

        Raises:
            ValueError: a layer never runs, or the RoI head is recorded together with the RPN head.
        """
        self._on_rois = RoIForward(self.model, sources)
        self._forward = TappedForward(self.model, set(sources) - set(self._on_rois.sources))
        with torch.no_grad():
            self._forward.probe(inputs, blank_samples(inputs), forget=forget)
        if self._on_rois:
            if self._forward.whole:
                raise ValueError(
                    f'Layers of the RoI head cannot be recorded together with others but features: {sources}.'
                )
            self._forward.never_stop()
        output, self._forward.output = self._forward.output, None  # kept, it would take memory for the whole training
        return output

    def settle(self, inputs: Tensor, data_samples: list | None) -> None:
        """Apply the options, once, and measure what they change on this batch; outside of any recording.

        Raises:
            TeacherOptionError: the device, torch or the network cannot serve an option, features overflow or
                differ by more than rounding explains, or are not finite without options either.
        """
        self.load()
        if self.settled:
            return
        self.options.check_device(inputs.device)
        with torch.autocast(inputs.device.type, enabled=False):  # plain is float32, also in a step of `--amp`
            before = self._forward.outputs(inputs, data_samples)
        try:
            rois = self.reads_rois or self._forward.whole
            make_cheap(self.model, self.options, lambda: self._forward(inputs, data_samples), rois=rois)
            with self.options.context(inputs.device):
                after = self._forward.outputs(self._laid_out(inputs), data_samples)
        except (RuntimeError, NotImplementedError, TypeError) as error:  # of torch: a kernel or a compiler that lacks
            reason = str(error).strip().split('\n')[0]
            raise TeacherOptionError(
                f'The teacher {self.source.name} does not run with the options {self.options} on {inputs.device.type} '
                f'({type(error).__name__}: {reason}). Leave them out.'
            ) from error
        self.settled = True
        self._check(before, after, inputs.device)

    def _check(self, before: list[Tensor], after: list[Tensor], device: torch.device) -> None:
        amp = self.options.precision is None and torch.is_autocast_enabled(device.type)
        described = f'{self.options} in a step of mixed precision' if amp else str(self.options)
        tolerance = (replace(self.options, precision='bf16') if amp else self.options).tolerance
        remedy = "Give it precision='fp32', or leave them out." if amp else 'Leave them out.'
        features = f'Features of the teacher {self.source.name}'
        try:
            difference = relative_difference(before, after)
        except FloatingPointError as error:
            raise TeacherOptionError(
                f'{features} are NaN or infinite on this batch in plain float32: its options ({self.options}) are not '
                'the reason and cannot be checked. Look at its weights and at the images.'
            ) from error
        if not difference < float('inf'):
            raise TeacherOptionError(f'{features} overflow with {described}. {remedy}')
        if difference > tolerance:
            raise TeacherOptionError(
                f'{features} differ by {100 * difference:.2g} % from the plain ones with {described}: rounding '
                f'explains {100 * tolerance:g} % at most. {remedy}'
            )
        text = f'Teacher with {described}: its features differ by {100 * difference:.2g} % from the plain ones.'
        print_log(text, logger='current')

    def _laid_out(self, inputs: Tensor) -> Tensor:
        return inputs.contiguous(memory_format=torch.channels_last) if self.options.channels_last else inputs

    def run(self, inputs: Tensor, data_samples: list | None) -> Any:
        """Forward without gradients as far as needed; returns the features where `reads_rois`."""
        self.load()
        with torch.no_grad(), self.options.context(inputs.device):
            return self._forward(self._laid_out(inputs), data_samples)

    def run_on(self, features: Any, rois: Tensor | None) -> None:
        """Run the RoI head, if it is recorded, on the student's proposals (R, 5)."""
        if self._on_rois:
            if self.options:  # mmcv's RoIAlign knows neither bf16 nor another layout, and does not say so
                features, rois = tuple(map(self.options.restore, features)), self.options.restore(rois)
            with torch.no_grad(), self.options.exact_context(rois.device):
                self._on_rois(features, rois)

    def renormalise_from(self, student: BaseModel) -> Renormalise:
        """The step from the student's normalised batch to the teacher's own normalisation."""
        return Renormalise(student.data_preprocessor, self.model.data_preprocessor)


class LentTeacher:
    """The teacher of a copied model: the original's, in all things but that moving the copy leaves it where it is.

    Args:
        owner: the teacher of the original.
    """

    def __init__(self, owner: Teacher) -> None:
        self.owner = owner

    def __getattr__(self, name: str) -> Any:
        if name == 'owner':  # not there yet, while a pickle is read
            raise AttributeError(name)
        return getattr(self.owner, name)

    def __deepcopy__(self, memo: dict) -> 'LentTeacher':
        """The same, for the copy of a copy."""
        return self

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Nothing: the original needs it where it is."""

    def set_device(self, device: torch.device) -> None:
        """Nothing, too."""
