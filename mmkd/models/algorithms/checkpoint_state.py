"""Weights in a checkpoint beside the network that they are for: what fits, what does not."""

import fnmatch
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor

# Keys that older MMDetection releases wrote or left out, without effect on what the network computes.
HARMLESS_KEYS = (
    '*.num_batches_tracked',
    'data_preprocessor.*',
    '*.integral.project',
    '*prior_generator*',
    '*anchor_generator*',
    '*loss_*.class_weight',
)


class CheckpointMismatchError(RuntimeError):
    """A checkpoint that is not this network's."""

    user_mistake = True


def file_sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b''):
        digest.update(block)
    return digest.hexdigest()


def is_harmless(key: str) -> bool:
    """Whether a key that is missing or too many changes nothing of what the network computes."""
    return any(fnmatch.fnmatch(key, pattern) for pattern in HARMLESS_KEYS)


def _listed(keys: list[str]) -> str:
    return ', '.join(keys[:6]) + (f' and {len(keys) - 6} more' if len(keys) > 6 else '')


def plain_state(checkpoint: Any, *, name: str = 'the file') -> OrderedDict[str, Tensor]:
    """The state in a checkpoint, without what DataParallel puts before the names; the versions of its modules stay.

    Layers rename what an older version of them saved, and know by that version what it was.

    Args:
        checkpoint: a checkpoint with `state_dict`, or the state itself.
        name: what to call it in the message.

    Raises:
        CheckpointMismatchError: there is no state of tensors.
    """
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointMismatchError(f'{name} is no checkpoint: it holds no state_dict of tensors.')
    return _with_versions({k.removeprefix('module.'): v for k, v in state.items()}, state)


def _with_versions(state: Mapping[str, Tensor], source: Any) -> OrderedDict[str, Tensor]:
    result = OrderedDict(state)
    versions = getattr(source, '_metadata', None)
    if versions is not None:
        result._metadata = OrderedDict((k.removeprefix('module').lstrip('.'), v) for k, v in versions.items())
    return result


def load_fitting(model: BaseModel, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Load what fits, as MMEngine would: with the names that the layers give to what older versions of them saved.

    Args:
        model: receives the weights.
        state: as `plain_state` gives it.

    Returns:
        What did not fit: `missing`, `unexpected` and `shape` keys, harmless ones left out.

    Raises:
        CheckpointMismatchError: a tensor that only fits under another name has another shape.
    """
    own = model.state_dict()
    other = {k for k in own if k in state and tuple(state[k].shape) != tuple(own[k].shape)}
    fitting = _with_versions({k: v for k, v in state.items() if k not in other}, state)
    try:
        with torch.no_grad():
            keys = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise CheckpointMismatchError(str(error).strip().split('\n')[-1].strip()) from error
    return dict(
        missing=[k for k in keys.missing_keys if k not in other and not is_harmless(k)],
        unexpected=[k for k in keys.unexpected_keys if not is_harmless(k)],
        shape=[f'{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}' for k in own if k in other],
    )


def compare_states(model: BaseModel, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """As `load_fitting`, and the network has its own weights again afterwards."""
    kept = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    try:
        return load_fitting(model, state)
    finally:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(kept[name])


def load_strictly(model: BaseModel, checkpoint: Mapping, *, name: str, strict: bool = True) -> None:
    """Load a checkpoint into a model and refuse one that does not fit.

    Args:
        model: receives the weights; after a refusal it is not to be used.
        checkpoint: a checkpoint with `state_dict`, or the state itself.
        name: what to call model and file in messages.
        strict: refuse; otherwise warn and load what fits.

    Raises:
        CheckpointMismatchError: keys are missing, unexpected, or of another shape.
    """
    state = plain_state(checkpoint, name=name)
    if any(k.startswith('architecture.') for k in state):
        raise CheckpointMismatchError(
            f'{name} is a checkpoint of an MMRazor algorithm (keys "architecture.*"), not of a detector. Export its '
            'student first.'
        )
    problems = load_fitting(model, state)
    found = [f'{len(keys)} {kind}: {_listed(keys)}' for kind, keys in problems.items() if keys]
    if found and strict:
        classes = any('cls' in key for key in problems['shape'])
        hint = ' Its number of classes seems to differ.' if classes else ''
        raise CheckpointMismatchError(
            f'The checkpoint does not fit {name}. ' + '; '.join(found) + f'.{hint} '
            '(For a teacher, teacher_strict=False loads what fits.)'
        )
    if found:
        print_log(f'Teacher {name} loaded in part. ' + '; '.join(found), logger='current', level=30)
