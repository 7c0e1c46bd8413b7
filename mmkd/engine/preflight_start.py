"""The checkpoint from which a training is to start: read before any work, and compared with the network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel

from mmkd import compat
from mmkd.engine.student_config import is_distillation
from mmkd.models.algorithms.checkpoint_state import CheckpointMismatchError, compare_states, is_harmless, plain_state

CHECKPOINT_ERRORS = (FileNotFoundError, compat.UnsafeCheckpointError, CheckpointMismatchError)
# A file of which less than this part of the network is filled is another network's. A backbone alone fills more.
LEAST_FILLED = 0.1


@dataclass
class Start:
    """Weights from which a training starts.

    Args:
        name: the file; None where there is none to be read before the training.
        state: its tensors; None where it cannot be read.
        problems: what is wrong with the file.
    """

    name: str | None = None
    state: Mapping[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


def read_start(cfg: Config) -> Start:
    """Read `load_from`, or what a plain training resumes, where it lies on this machine.

    What a distillation resumes is looked at by its own hook, which knows more.
    """
    name = cfg.get('load_from') or _latest(cfg)
    if not name or '://' in name:
        return Start()
    try:
        checkpoint = compat.load_checkpoint_file(str(compat.fetch_checkpoint(name)))
        if cfg.get('resume') and not is_distillation(cfg) and isinstance(checkpoint, Mapping) and 'mmkd' in checkpoint:
            return Start(name, problems=[_of_a_distillation(name)])
        return Start(name, plain_state(checkpoint, name=name))
    except CHECKPOINT_ERRORS as error:
        return Start(name, problems=[f'load_from: {error}'])


def _latest(cfg: Config) -> str | None:
    """The checkpoint that MMEngine takes for `--resume` without a value."""
    last = Path(cfg.get('work_dir') or '.') / 'last_checkpoint'
    if not cfg.get('resume') or is_distillation(cfg) or not last.is_file():
        return None
    return last.read_text().strip()


def _of_a_distillation(name: str) -> str:
    return (
        f'resume: {name} was written by a distillation, but this configuration has none: the training would go on '
        "without teacher. Give the distillation's configuration; to train its student alone from these weights, use "
        'load_from without resume.'
    )


def check_start(model: BaseModel, start: Start) -> Iterator[str]:
    """A checkpoint of another network: MMEngine would load nothing of it and train from other weights, silently.

    Args:
        model: as the training builds it.
        start: what it starts from.
    """
    if start.state is None:
        return
    if any(key.startswith('architecture.') for key in start.state):
        yield (
            f'load_from: {start.name} is a checkpoint of an MMRazor algorithm ("architecture.*"), of which nothing '
            'fits. tools/export_student.py writes its student.'
        )
        return
    own = [key for key in model.state_dict() if not is_harmless(key)]
    try:
        problems = compare_states(model, start.state)
    except CheckpointMismatchError:  # of a layer that renames: MMEngine says so, and the rest may well fit
        return
    filled = len(own) - len(problems['missing']) - len(problems['shape'])
    if filled >= LEAST_FILLED * len(own):
        return
    strange = [*problems['unexpected'], *problems['shape']]
    yield (
        f'load_from: {start.name} is of another network: it fills {filled} of the {len(own)} tensors of '
        f'{_kind(model)}, and {len(strange)} of its own fit nowhere{_such_as(strange)}. Missing are '
        f'{len(problems["missing"])}{_such_as(problems["missing"])}.'
    )


def _kind(model: BaseModel) -> str:
    return f'the student {type(getattr(model, "architecture", model)).__name__}'


def _such_as(keys: list[str]) -> str:
    return f', such as {", ".join(keys[:2])}' if keys else ''
