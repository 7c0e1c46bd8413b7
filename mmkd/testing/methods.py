"""Which distiller an arm of an experiment uses: the shipped method files, by name."""

import difflib
import importlib.resources
from pathlib import Path

from mmengine.config import Config

PLAIN, TEACHER = 'plain', 'teacher'

# Arms that are another method's file with other settings: the paper's controls.
_VARIANTS: dict[str, tuple[str, dict]] = {}


def config_root() -> Path:
    """Folder of the shipped configs, in a checkout or in an installed wheel."""
    package = Path(str(importlib.resources.files('mmkd')))
    for folder in (package.parent / 'configs', package / '.mim' / 'configs'):
        if (folder / '_base_' / 'methods').is_dir():
            return folder
    raise FileNotFoundError(f'no configs/_base_/methods beside or in {package}')


def known_methods() -> list[str]:
    """Names an experiment can compare, `plain` first."""
    files = sorted(path.stem for path in (config_root() / '_base_' / 'methods').glob('*.py'))
    return [PLAIN, *files, *(name for name in _VARIANTS if name not in files)]


def method_distiller(name: str) -> dict:
    """Distiller config of a method.

    Args:
        name: Stem of a file in `configs/_base_/methods`, or a variant of one.

    Returns:
        The value for `distiller=`.

    Raises:
        ValueError: For a name that is not known; the nearest is suggested.
    """
    known = known_methods()
    if name not in known or name == PLAIN:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'method must be one of {known[1:]}, got {name!r}{hint}')
    file, overrides = _VARIANTS.get(name, (name, {}))
    cfg = Config.fromfile(config_root() / '_base_' / 'methods' / f'{file}.py')
    cfg.merge_from_dict({f'distiller.{key}': value for key, value in overrides.items()})
    return cfg.distiller.to_dict()


def distilled_model(student: dict, teacher_config: Path, teacher_checkpoint: Path, method: str) -> dict:
    """Model config of a distilled arm.

    Args:
        student: Model config of the student.
        teacher_config: Config file the teacher was trained with.
        teacher_checkpoint: Its weights.
        method: Name of the method.

    Returns:
        Value for `model=`.
    """
    return dict(
        type='mmkd.TeacherStudentDistill',
        architecture=student,
        teacher=str(teacher_config),
        teacher_ckpt=str(teacher_checkpoint),
        distiller=method_distiller(method),
    )
