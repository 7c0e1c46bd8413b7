"""Where a teacher comes from: its configuration by name, path or dictionary, and its published weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

from mmkd.near_names import absent_file, nearest


@dataclass(frozen=True)
class ModelSource:
    """A network's configuration and where it was found.

    Args:
        model: configuration of the network alone.
        name: what to call it in messages: `pkg::config`, a path, or the type.
        weights: URL of the published weights, or None.
        classes: class names of the data set it was made for, or None.
    """

    model: ConfigDict
    name: str
    weights: str | None = None
    classes: tuple[str, ...] | None = None

    def numbers_otherwise(self, classes: Sequence[str] | None) -> bool:
        """Whether these are the network's classes, in another order; False where either are not known."""
        known = bool(self.classes and classes)
        return known and sorted(self.classes) == sorted(classes) and tuple(self.classes) != tuple(classes)


def config_folder(package: str) -> Path:
    """Folder of the configurations that an OpenMMLab package installs.

    Raises:
        ValueError: the package is not installed, or brings no configurations.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'The package {package!r} is not installed.')
    root = Path(next(iter(spec.submodule_search_locations)))
    folder, beside = root / '.mim' / 'configs', root.parent / 'configs'
    if not folder.is_dir() and package == 'mmkd' and beside.is_dir():  # a checkout that was not installed
        return beside
    if not folder.is_dir():
        raise ValueError(f'The package {package!r} brings no configurations (no {folder}).')
    return folder


def find_config(name: str) -> Path:
    """Path of a configuration given as `pkg::folder/file.py` or as a path.

    Raises:
        FileNotFoundError: no such file; the message names the nearest ones.
        ValueError: the package is not installed.
    """
    package, separator, relative = name.partition('::')
    if not separator:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        if path.is_dir():
            raise FileNotFoundError(f'Config {absent_file(path)}.')
        options = [p.name for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise FileNotFoundError(f'Config {name} does not exist; {nearest(path.name, options)}.')
    folder = config_folder(package)
    path = folder / relative
    if path.is_file():
        return path
    options = [str(p.relative_to(folder)) for p in folder.rglob('*.py')]
    raise FileNotFoundError(f'{package} has no config {relative!r}; {nearest(relative, options)}.')


def published_weights(path: Path) -> str | None:
    """URL that the metafile beside a configuration lists for it, or None."""
    metafile = path.parent / 'metafile.yml'
    if not metafile.is_file():
        return None
    # not MMEngine's loader, which constructs whatever object a YAML file asks for
    models = yaml.safe_load(metafile.read_text(encoding='utf-8')).get('Models', [])
    found = (m.get('Weights') for m in models if Path(m.get('Config', '')).name == path.name)
    return next((weights for weights in found if weights), None)


def _classes(cfg: Mapping) -> tuple[str, ...] | None:
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg.get(loader) or {}
        dataset = dataset.get('dataset', {})
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        classes = (dataset.get('metainfo') or {}).get('classes')
        if classes:
            return class_names(classes)
    return None


def detected_classes(metainfo: Mapping) -> tuple[str, ...]:
    """Names of the classes that a detection head predicts: of a panoptic set the things, without the stuff."""
    classes, things = class_names(metainfo.get('classes')), class_names(metainfo.get('thing_classes'))
    return things if things and set(things) < set(classes) else classes


def class_names(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names as `metainfo.classes` gives them: a list, a file with one a line as MMEngine reads it, or nothing."""
    if isinstance(classes, str):
        try:
            return tuple(list_from_file(classes))
        except (TypeError, FileNotFoundError):  # as MMEngine: then it is a name
            return (classes,)
    return tuple(classes or ())


def plain_model(model: Mapping) -> ConfigDict:
    """The student inside an algorithm's configuration (a teacher assistant), or the configuration itself."""
    while 'architecture' in model:
        model = model['architecture']
    return ConfigDict(model)


def read_config(path: Path) -> Config:
    """A configuration from its file.

    Raises:
        ValueError: it inherits itself, which MMEngine's loader would follow for minutes.
        Exception: of any kind, where the file or one that it inherits cannot be read or is wrong.
    """
    circle = _circle(path.resolve(), ())
    if circle:
        raise ValueError(f'_base_ leads back to the file itself: {" -> ".join(file.name for file in circle)}')
    return Config.fromfile(str(path))


def _circle(path: Path, way: tuple[Path, ...]) -> tuple[Path, ...]:
    """Files that inherit one another in a circle, found along `_base_`; those of packages inherit no one's file."""
    if path in way:
        return (*way[way.index(path) :], path)
    try:
        bases = Config._get_base_files(str(path))
    except Exception:  # the loader itself says it better
        return ()
    near = [(path.parent / base).resolve() for base in bases if '::' not in str(base)]
    return next((found for base in near if (found := _circle(base, (*way, path)))), ())


def load_model_source(teacher: str | Mapping[str, Any]) -> ModelSource:
    """Find a network by `pkg::config`, path, configuration of the model, or whole configuration.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: neither text nor dictionary.
        ValueError: the configuration has no model.
    """
    if isinstance(teacher, Mapping):
        if 'config' in teacher:  # with a teacher's options beside it
            return load_model_source(teacher['config'])
        if 'type' in teacher:
            return ModelSource(plain_model(teacher), str(teacher['type']))
        if 'model' in teacher:
            return ModelSource(
                plain_model(teacher['model']), str(teacher['model'].get('type')), None, _classes(teacher)
            )
        raise ValueError(
            'teacher must have a type (a model), a model (a whole config) or a config (with options), got keys '
            f'{list(teacher)}.'
        )
    if not isinstance(teacher, str | Path):
        raise TypeError(f'teacher must be "pkg::config", a path or a dict, got {type(teacher).__name__}.')
    path = find_config(str(teacher))
    cfg = read_config(path)
    if 'model' not in cfg:
        raise ValueError(f'The config {teacher} has no model.')
    model = plain_model(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return ModelSource(model, str(teacher), published_weights(path), _classes(cfg))
