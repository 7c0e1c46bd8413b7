"""What `tools/new_config.py` does after parsing its arguments: a leaf config, written once it is known to work."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmkd import compat
from mmkd.engine.command_line import check_output
from mmkd.engine.config_check import check_config
from mmkd.engine.launch import load_config
from mmkd.engine.method_choice import SELF_DISTILLATION, method_algorithm, method_family, method_file
from mmkd.engine.preflight_data import dataset_classes, datasets
from mmkd.engine.student_config import is_distillation
from mmkd.models.algorithms.model_config import config_folder, find_config, published_weights
from mmkd.near_names import nearest
from mmkd.whole_files import folder_for

# The file that compares the necks alone, where classes or heads differ.
NECK_ONLY = {'ikd': 'ikd_neck', 'mkd': 'mkd_neck'}
# The page of a family; MMRazor's own losses (cwd, pkd, mgd) have none.
PAGES = {name: name for name in ('ssim', 'mssd', 'ikd', 'mkd', 'frskd')} | dict(l1='ssim', l2='ssim')
SHOWN = 6


@dataclass(frozen=True)
class Request:
    """A pair, a method and a file.

    Args:
        student: config of the student, `pkg::name` or a path.
        method: name such as `ikd`, or the stem of a method file such as `ikd_neck`.
        out: file to write.
        teacher: config of the teacher; None for a self-distillation.
        teacher_ckpt: its checkpoint; None for the weights that its metafile lists.
        other_classes: the teacher may have other classes; then only features are compared.
        force: write over a file that is there.
    """

    student: str
    method: str
    out: Path
    teacher: str | None = None
    teacher_ckpt: str | None = None
    other_classes: bool = False
    force: bool = False


@dataclass(frozen=True)
class Written:
    """A new config.

    Args:
        method: stem of the method file that was chosen.
        text: content of the config.
        warnings: what the check found allowed, but often a mistake.
    """

    method: str
    text: str
    warnings: Sequence[str]


def write_config(request: Request) -> Written:
    """Choose the method file for the pair, check the configuration, write it.

    Nothing is written where the check finds a problem; the data set is not looked at, and published weights are not
    downloaded.

    Raises:
        FileExistsError: the file is there and `force` is not set.
        FileNotFoundError: a config or checkpoint does not exist.
        PermissionError: the file's folder cannot be written to.
        ValueError: an unknown method, no detector, a teacher too many or too few, other classes, a pair that the
            method cannot serve, or a file that the new one would inherit from; the message names it.
    """
    compat.enable_config_prefix()
    request = replace(request, out=request.out.expanduser())
    _check_out(request)
    _check_method(request)
    student = _detector(request.student)
    teacher = None if request.teacher is None else _detector(request.teacher)
    _check_free(request)
    if teacher is not None:
        _check_checkpoint(request)
    same = teacher is None or _check_classes(request, student, teacher)
    stem = method_file(request.method, student.model, None if teacher is None else teacher.model)
    if not same and request.method in NECK_ONLY:
        stem = NECK_ONLY[request.method]
    with folder_for(request.out):
        problems: list[str] = []
        for candidate in _candidates(stem):
            text = leaf_text(request, candidate, student.model)
            warnings, problems = _checked(text, request)
            if not problems:
                request.out.write_text(text, encoding='utf-8')
                return Written(candidate, text, warnings)
        raise ValueError(f'{stem} does not serve this pair, nothing was written:\n' + '\n'.join(problems))


def _check_out(request: Request) -> None:
    if request.out.suffix != '.py':
        raise ValueError(f'--out must end in .py, got {request.out}.')
    check_output('--out', request.out)


def _check_free(request: Request) -> None:
    """Refuse to write over what the new config is made of, whatever `force` says, and over others without `force`."""
    out = request.out
    if not out.exists():
        return
    for option, name in (('--student', request.student), ('--teacher', request.teacher)):
        files = [] if name is None else _inherited(find_config(name))
        if any(out.samefile(file) for file in files):
            part = 'the file' if out.samefile(files[0]) else 'a base'
            raise ValueError(f'--out {out} is {part} of {option} {name}, which the new config needs: name another.')
    if any(out.samefile(file) for file in _method_files()):
        raise ValueError(f'--out {out} is a method file of mmkd, which configs need: name another.')
    if not request.force:
        raise FileExistsError(f'{out} is there already; --force writes over it.')


def _inherited(config: Path) -> list[Path]:
    """A config that can be read, and all that it inherits from."""
    found: dict[Path, Path] = {}
    waiting = [config]
    while waiting:
        path = waiting.pop()
        if path.resolve() in found:
            continue
        found[path.resolve()] = path
        bases = Config._get_base_files(str(path))
        waiting += [Path(Config._get_cfg_path(base, str(path))[0]) for base in bases]
    return list(found.values())


def _method_files() -> list[Path]:
    return sorted((config_folder('mmkd') / '_base_' / 'methods').glob('*.py'))


def method_names() -> list[str]:
    """Stems of the method files that the package brings."""
    return [path.stem for path in _method_files()]


def _check_method(request: Request) -> None:
    known, stem = method_names(), request.method.removesuffix('.py')
    if stem not in known:
        raise ValueError(f'No method is called {request.method!r}; {nearest(stem, known)}.')
    own = method_family(stem) in SELF_DISTILLATION
    if own and request.teacher is not None:
        raise ValueError(f'{request.method} has no teacher, the student teaches itself: leave --teacher out.')
    if own and request.teacher_ckpt is not None:
        raise ValueError(f'{request.method} has no teacher: leave --teacher-ckpt out.')
    if not own and request.teacher is None:
        alone = ', '.join(SELF_DISTILLATION)
        raise ValueError(f'{request.method} needs a teacher: --teacher CONFIG. Methods without one: {alone}.')


def _detector(name: str) -> Config:
    """The whole configuration of a plain detector."""
    cfg = load_config(name)
    if is_distillation(cfg):
        raise ValueError(f'{name} is a distillation already; give the config of the detector alone.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        kind = cfg.model.get('type')
        try:
            with MODELS.switch_scope_and_registry(None) as registry:  # `get` alone does not know the default scope
                found = registry.get(kind) if isinstance(kind, str) else kind
        except (ImportError, KeyError):  # a scope whose package is not installed
            found = None
    if not (isinstance(found, type) and issubclass(found, BaseDetector)):
        raise ValueError(f'{name} is no detector of MMDetection: its model is {kind}.')
    return cfg


def _check_checkpoint(request: Request) -> None:
    given, teacher = request.teacher_ckpt, str(request.teacher)
    if given is None and published_weights(find_config(teacher)) is None:
        raise ValueError(f'No weights are published for {teacher}; give its own: --teacher-ckpt FILE.')
    if given is not None and '://' not in given and not Path(given).is_file():
        raise FileNotFoundError(f'--teacher-ckpt {given} does not exist.')


def _check_classes(request: Request, student: Config, teacher: Config) -> bool:
    """Whether both have the same classes in the same order; refuses others where the request does not allow them."""
    names = [_class_names(cfg) for cfg in (student, teacher)]
    counts = [_class_count(cfg.model) for cfg in (student, teacher)]
    same = (names[0] == names[1] or () in names) and (counts[0] == counts[1] or None in counts)
    if same or request.other_classes:
        return same
    said = [_said(names[i], counts[i]) for i in (0, 1)]
    raise ValueError(
        f'Student and teacher have other classes: {said[0]}; {said[1]}. A teacher of the same classes is better; '
        '--other-classes compares features alone.'
    )


def _said(names: Sequence[str], count: int | None) -> str:
    shown = ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
    return f'{len(names) or count} ({shown})' if names else f'{count}'


def _class_names(cfg: Config) -> tuple[str, ...]:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        return next((dataset_classes(dataset) for _, dataset in datasets(cfg)), ())


def _class_count(model: Mapping[str, Any]) -> int | None:
    for head in (model.get('bbox_head'), (model.get('roi_head') or {}).get('bbox_head')):
        one = head[0] if isinstance(head, list | tuple) and head else head
        if isinstance(one, Mapping) and 'num_classes' in one:
            return one['num_classes']
    return None


def _candidates(stem: str) -> Iterator[str]:
    """The file itself, then its form with an adaptation layer for necks of other channels."""
    yield stem
    if f'{stem}_adapt' in method_names():
        yield f'{stem}_adapt'


def leaf_text(request: Request, stem: str, student: Mapping[str, Any]) -> str:
    """Text of the leaf.

    Args:
        request: the pair.
        stem: of the method file.
        student: its model's configuration.
    """
    folder = request.out.resolve().parent
    method = config_folder('mmkd') / '_base_' / 'methods' / f'{stem}.py'
    base = f'mmkd::_base_/methods/{stem}.py'
    if folder.is_relative_to(method.resolve().parents[2]):  # among the shipped configs
        base = _relative(method, folder)
    pair = ' -> '.join(Path(name.split('::')[-1]).stem for name in (request.teacher, request.student) if name)
    settings = method_algorithm(stem, student)
    kind, page = settings['type'], PAGES.get(method_family(stem))
    title = f'{stem}, docs/{page}.md' if page else stem
    more = ''.join(f'    {key}={_written(value)},\n' for key, value in settings.items() if key != 'type')
    if request.teacher is not None:
        more += f'    teacher={_runtime(request.teacher, folder)!r},\n'
    if request.teacher_ckpt is not None:
        more += f'    teacher_ckpt={_runtime(request.teacher_ckpt, folder)!r},\n'
    return (
        f'# {title}.\n# {pair}\n'
        f'_base_ = [\n    {_based(request.student, folder)!r},\n    {base!r}]\n'
        f'model = dict(\n    _delete_=True,\n    type={kind!r},\n    architecture={{{{_base_.model}}}},\n{more}'
        '    distiller={{_base_.distiller}})\n'
    )


def _written(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return f'dict({", ".join(f"{key}={_written(item)}" for key, item in value.items())})'


def _relative(path: str | Path, folder: Path) -> str:
    return Path(os.path.relpath(Path(path).expanduser().resolve(), folder)).as_posix()


def _based(name: str, folder: Path) -> str:
    """As `_base_` reads it: from the folder of the file."""
    return name if '::' in name else _relative(name, folder)


def _runtime(name: str, folder: Path) -> str:
    """As a run reads it, whatever its working directory: MMEngine puts in the folder of the file."""
    return name if '::' in name or '://' in name else f'{{{{ fileDirname }}}}/{_relative(name, folder)}'


def _checked(text: str, request: Request) -> tuple[list[str], list[str]]:
    """Warnings and problems of a configuration that lies where it is to be written, under another name."""
    trial = request.out.with_name(f'{request.out.stem}_not_checked_yet.py')
    if trial.exists():
        raise FileExistsError(f'{trial} is in the way.')
    local = request.teacher_ckpt is not None and '://' not in request.teacher_ckpt
    try:
        trial.write_text(text, encoding='utf-8')
        report = check_config(load_config(str(trial)), data=False, weights=local)
    finally:
        trial.unlink(missing_ok=True)
    return report.warnings, report.problems
