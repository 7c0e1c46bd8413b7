"""An algorithm that everything outside takes for its plain student.

The student's own children, parameters and buffers hang directly on the algorithm, so that checkpoints, optimiser
constructors, hooks and DDP see MMDetection's plain names (`backbone.conv1.weight`, not
`architecture.backbone.conv1.weight`). What the method adds (connectors, self-teachers) inherits `SavedApart`.
"""

import copy
from typing import Any

import mmkd.compat  # noqa: F401  (makes mmrazor importable)

# isort: split
from mmengine.dist import broadcast
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from mmrazor.models.algorithms import BaseAlgorithm
from torch import Tensor, nn

from mmkd.models.algorithms.step_clock import StepClock
from mmkd.models.apart import SavedApart, own_randomness

# Key in MMEngine's `MessageHub`: iterations of an epoch, where the training loop does not count epochs.
EPOCH_LENGTH = 'mmkd_epoch_length'


def training_progress() -> tuple[int, int]:
    """Epoch and iteration (both from 0) that the Runner has reached; (0, 0) without a Runner.

    Where the loop counts iterations alone, MMEngine's epoch stays 0; `ScheduleHook` says how long an epoch is.
    """
    hub = MessageHub.get_current_instance()
    iteration, length = int(hub.get_info('iter', 0)), hub.get_info(EPOCH_LENGTH, None)
    return int(hub.get_info('epoch', 0)) if length is None else iteration // int(length), iteration


def build_student(architecture: dict | BaseModel) -> BaseModel:
    """Build a student by MMEngine's root registry, as MMEngine's Runner would; the configuration stays as it is.

    MMDetection's Deformable DETR and its kind write into the configuration that they are built from, and refuse
    it then.

    Raises:
        TypeError: neither a configuration nor a model.
    """
    if isinstance(architecture, dict):
        architecture = ROOT_MODELS.build(copy.deepcopy(architecture))
    if not isinstance(architecture, BaseModel):
        raise TypeError(f'architecture must be a dict or an MMEngine BaseModel, got {type(architecture).__name__}.')
    return architecture


class PlainStudentAlgorithm(BaseAlgorithm):
    """Base of mmkd's algorithms.

    Args:
        architecture: configuration of the student or the built student.
        data_preprocessor: that of a student whose configuration has none. MMEngine gives the algorithm the run's
            top-level one in any case; a student that has its own keeps it, as in plain training.

    Raises:
        TypeError: `architecture` is neither a configuration nor a model.
    """

    def __init__(self, architecture: dict | BaseModel, data_preprocessor: dict | nn.Module | None = None) -> None:
        student = build_student(architecture)
        if isinstance(architecture, dict) and architecture.get('data_preprocessor'):
            data_preprocessor = None
        super().__init__(student, data_preprocessor, module_inplace=True)
        if data_preprocessor is not None:
            student.data_preprocessor = self.data_preprocessor
        del self._modules['architecture']
        self.__dict__['architecture'] = student
        self.clock = StepClock()
        # The same dictionaries, so that whatever moves or replaces a parameter does it for both.
        self._parameters, self._buffers = student._parameters, student._buffers
        self._non_persistent_buffers_set = student._non_persistent_buffers_set
        self._modules.clear()
        self._modules.update(student._modules)
        self.register_load_state_dict_post_hook(_forgive_apart)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the algorithm or, where it has none of that name, of the student."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('architecture')
            if student is None:
                raise
            return getattr(student, name)

    def add_apart(self, name: str, module: SavedApart) -> None:
        """Add what the method needs beside the student.

        Raises:
            ValueError: the student has a child of that name.
        """
        if name in self._modules:
            raise ValueError(f'The student {type(self.architecture).__name__} already has a module named {name!r}.')
        self.add_module(name, module)

    def apart_modules(self) -> dict[str, SavedApart]:
        """The modules that are saved beside the student's `state_dict`."""
        return {name: module for name, module in self._modules.items() if isinstance(module, SavedApart)}

    def listen_again(self) -> None:
        """Attach recorders of layers that were exchanged since the model was built (`convert_sync_batchnorm`)."""
        self.distiller.listen_again(self.architecture, from_student=True)

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters beside the student that no loss of this step trains: the optimiser must leave them alone."""
        distiller = self._modules.get('distiller')
        return distiller.idle_parameters() if hasattr(distiller, 'idle_parameters') else []

    def init_weights(self) -> None:
        """Initialise the student as without distillation, then the rest from mmkd's own random state."""
        self.architecture.init_weights()
        with own_randomness():
            for module in self.apart_modules().values():
                for child in module.modules():
                    if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                        child.init_weights()
        # The Runner broadcasts `state_dict`, where these are not; with a seed a rank they would differ for ever.
        for module in self.apart_modules().values():
            for value in nn.Module.state_dict(module).values():
                broadcast(value)

    def _load_from_state_dict(self, *args: Any) -> None:
        """The student's own: MMDetection's detectors rename a region proposal network's or one-stage head there."""
        self.architecture._load_from_state_dict(*args)

    def train(self, mode: bool = True) -> 'PlainStudentAlgorithm':
        """Switch the student and what is beside it; returns self."""
        self.training = mode
        self.architecture.train(mode)
        for module in self.apart_modules().values():
            module.train(mode)
        return self

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """The student's forward, except that mode `loss` is the method's training step."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.architecture(inputs, data_samples, mode=mode)

    def runner_hooks(self) -> list[dict]:
        """Hooks that the Runner registers for this model (see `mmkd.compat.attach_model_hooks`)."""
        return [
            dict(type='mmkd.DistillCheckpointHook'),
            dict(type='mmkd.ClassCheckHook'),
            dict(type='mmkd.ScheduleHook'),
            dict(type='mmkd.NumberGuardHook'),
            dict(type='mmkd.CostHook'),
        ]


def _forgive_apart(module: PlainStudentAlgorithm, incompatible: Any) -> None:
    """Keys of the modules saved apart are not missing from a plain student's checkpoint."""
    apart = [f'{name}.{key}' for name, child in module.apart_modules().items() for key in nn.Module.state_dict(child)]
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if not any(key == name or key.endswith(f'.{name}') for name in apart)
    ]
