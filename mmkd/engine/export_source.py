"""What an export starts from: a checkpoint or a work directory, of mmkd, MMDetection or MMRazor.

`M` in messages are millions of values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from mmkd.compat import fetch_checkpoint, load_checkpoint_file
from mmkd.engine.config_as_data import check_types, parse_config
from mmkd.engine.launch import load_config
from mmkd.whole_files import last_whole_checkpoint

STUDENT = 'architecture.'


@dataclass
class ExportSource:
    """A checkpoint that was read.

    Args:
        path: of the checkpoint.
        checkpoint: its content.
        cfg: the configuration it was trained with, of the student or of its distillation.
        state: the student's weights under MMDetection's names.
        notes: what was found and left out, for the report.
        trusted: whether the configuration was named by the user, who thereby lets it run.
    """

    path: Path
    checkpoint: Mapping[str, Any]
    cfg: Config
    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    trusted: bool = False

    @property
    def meta(self) -> dict[str, Any]:
        """What the checkpoint says about itself."""
        return dict(self.checkpoint.get('meta') or {})


def find_checkpoint(source: str) -> Path:
    """The checkpoint that was meant: itself, or the last whole one of a work directory.

    A run that was killed may leave a `last_checkpoint` that points at nothing, or a file that is cut off: the newest
    one that can be read is taken.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without checkpoints.
        RuntimeError: the folder has checkpoints, and none of them is whole.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        path = fetch_checkpoint(source)
        if path is None:
            raise FileNotFoundError(f'{source} is neither a file, a work directory nor an address to download from.')
        return path
    found = last_whole_checkpoint(folder, load_checkpoint_file)
    if found is None:
        others = ', '.join(sorted(path.name for path in folder.glob('*.pth')))
        hint = f'name one of its files: {others}' if others else 'it holds no .pth file at all'
        raise FileNotFoundError(f'{folder} has no checkpoint epoch_*.pth or iter_*.pth; {hint}.')
    return Path(found)


def _plain_state(checkpoint: Any, path: Path, raw: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The network's weights as saved: those of MMEngine's EMA where there are any, or the raw ones."""
    mapping = isinstance(checkpoint, Mapping)
    averaged = mapping and 'ema_state_dict' in checkpoint
    if raw and not averaged:
        raise ValueError(f'{path} has no averaged weights (EMA): its state_dict is the raw one. Leave out --raw.')
    # MMEngine saves the averaged weights as state_dict, ready for use, and the raw ones as ema_state_dict.
    state = checkpoint['ema_state_dict'] if raw else checkpoint.get('state_dict', checkpoint) if mapping else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f'{path} is no checkpoint: it holds no state_dict of tensors.')
    notes = ['weights: ' + ('raw, not averaged' if raw else 'averaged (EMA)')] if averaged else []
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if raw:
        state.pop('steps', None)
    return state, notes


def student_state(checkpoint: Any, path: Path, *, raw: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """The student's weights alone.

    Args:
        checkpoint: content of the file; of mmkd and MMDetection, or of MMRazor, whose students have `architecture.`
            before every name and whose teachers and connectors lie beside them.
        path: for messages.
        raw: take the weights that were trained instead of their average.

    Returns:
        Weights by MMDetection's names, and notes on what was chosen and left out.

    Raises:
        ValueError: no weights in the file, `raw` without an average, or a file with a teacher and no student.
    """
    state, notes = _plain_state(checkpoint, path, raw)
    student = {key.removeprefix(STUDENT): value for key, value in state.items() if key.startswith(STUDENT)}
    if student:
        others = [key.split('.')[0] for key in state if not key.startswith(STUDENT)]
        counts = ', '.join(f'{name} ({others.count(name)} tensors)' for name in dict.fromkeys(others))
        notes.append(f"MMRazor's checkpoint: left out {counts or 'nothing beside the student'}")
        return student, notes
    if any(key.startswith(('teacher.', 'distiller.')) for key in state):
        raise ValueError(f'{path} holds a teacher or a distiller, and no student (no "{STUDENT}*").')
    return state, notes


def find_config(checkpoint: Any, path: Path) -> Config:
    """The configuration in a checkpoint, or `student.py` beside it; read as data, not run.

    Raises:
        ValueError: there is none.
        mmkd.engine.config_as_data.UnsafeConfigError: it is more than data.
    """
    text = (checkpoint.get('meta') or {}).get('cfg') if isinstance(checkpoint, Mapping) else None
    name = f'The configuration in {path}'
    beside = path.with_name('student.py')
    if isinstance(text, Mapping):
        text = f'model = {dict(text)!r}' if 'type' in text else '\n'.join(f'{k} = {v!r}' for k, v in text.items())
    if not isinstance(text, str) or not text.strip():
        if not beside.is_file():
            raise ValueError(f'{path} holds no configuration. Give that of the student or of its run by --config.')
        text, name = beside.read_text(encoding='utf-8'), str(beside)
    cfg = parse_config(text, name)
    check_types(cfg, name)
    return cfg


def read_source(source: str, *, config: str | None = None, raw: bool = False) -> ExportSource:
    """Read a checkpoint and find out what it is of.

    Args:
        source: checkpoint (path or URL) or work directory.
        config: configuration of the student or of its distillation; None for the one in the checkpoint.
        raw: raw weights instead of averaged ones.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no checkpoint of a student, or its configuration is missing or more than data.
        mmkd.compat.UnsafeCheckpointError: the file is damaged or wants to execute code.
    """
    path = find_checkpoint(source)
    checkpoint = load_checkpoint_file(str(path))
    state, notes = student_state(checkpoint, path, raw=raw)
    cfg = load_config(config) if config else find_config(checkpoint, path)
    return ExportSource(path, checkpoint, cfg, state, notes, trusted=config is not None)


def values_by_section(checkpoint: Any) -> dict[str, int]:
    """Number of values in tensors for each entry of a checkpoint that has any."""

    def count(node: Any) -> int:
        if isinstance(node, Tensor):
            return node.numel()
        if isinstance(node, Mapping):
            return sum(count(value) for value in node.values())
        return sum(count(value) for value in node) if isinstance(node, list | tuple) else 0

    sections = (
        checkpoint if isinstance(checkpoint, Mapping) and 'state_dict' in checkpoint else {'state_dict': checkpoint}
    )
    return {name: number for name, number in ((k, count(v)) for k, v in sections.items()) if number}
