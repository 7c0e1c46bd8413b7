"""Which distiller an arm of an experiment uses: the shipped method files, by name."""

import importlib.resources
from pathlib import Path

from mmengine.config import Config

from mmkd.engine.method_choice import SELF_DISTILLATION, method_algorithm, method_family
from mmkd.near_names import nearest

PLAIN, TEACHER = 'plain', 'teacher'
PLAIN_TIME = 'plain-time'  # plain, for as long as distillation takes: `mmkd.testing.time_budget`

# Methods whose loss compares the two necks cell by cell; where channels differ they need the 1x1 adaptation layer.
_NEEDS_ADAPTATION = ('ssim', 'l1', 'l2')
_ADAPT = dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))


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
    return [PLAIN, PLAIN_TIME, *files]


def is_plain(method: str) -> bool:
    """Whether a method is plain training."""
    return method in (PLAIN, PLAIN_TIME)


def check_method(name: str) -> None:
    """Refuse a name that is no method.

    Args:
        name: As an arm names it: `ikd`, `ikd_neck`, or `ikd.py`.

    Raises:
        ValueError: The nearest name is suggested.
    """
    known = known_methods()
    stem = name.removesuffix('.py')
    if stem not in known or (name != stem and is_plain(stem)):
        raise ValueError(f'method must be one of {known}, got {name!r}; {nearest(stem, known)}.')


def method_distiller(name: str) -> dict:
    """Distiller config of a method.

    Args:
        name: Stem of a file in `configs/_base_/methods`. `ssim`, `l1` and `l2` get a 1x1 adaptation layer on every
            level, all the same one, since student and teacher need not have equal channels.

    Returns:
        The value for `distiller=`.

    Raises:
        ValueError: For a name that is not known, or that has no distiller; the nearest is suggested.
    """
    check_method(name)
    if is_plain(name):
        raise ValueError(f'method must be one of {known_methods()[2:]}, got {name!r}')
    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / f'{name}.py').distiller.to_dict()
    return _adapted(distiller) if name in _NEEDS_ADAPTATION else distiller


def _adapted(distiller: dict) -> dict:
    for mapping in distiller['loss_forward_mappings'].values():
        mapping['preds_S'] = dict(mapping['preds_S'], connector='adapt')
    return dict(distiller, connectors=dict(distiller.get('connectors') or {}, adapt=dict(_ADAPT)))


def needs_teacher(method: str) -> bool:
    """Whether a method learns from the trained teacher; plain, the teacher itself and self-distillation do not."""
    return method != TEACHER and not is_plain(method) and method_family(method) not in SELF_DISTILLATION


def distilled_model(student: dict, method: str, teacher: dict | None = None) -> dict:
    """Model config of a distilled arm.

    Args:
        student: Model config of the student.
        method: Stem of a method file.
        teacher: `teacher` (its config) and `teacher_ckpt` (its weights); None for self-distillation.

    Returns:
        Value for `model=`.

    Raises:
        ValueError: Where the method needs a teacher and there is none.
    """
    if needs_teacher(method) and teacher is None:
        raise ValueError(f'{method} needs a teacher')
    given = teacher if needs_teacher(method) else {}
    return dict(
        method_algorithm(method, student), architecture=student, **(given or {}), distiller=method_distiller(method)
    )
