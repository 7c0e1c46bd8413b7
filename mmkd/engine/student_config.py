"""The plain MMDetection configuration of a student, without anything of mmkd's around it."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config


def is_distillation(cfg: Config) -> bool:
    """Whether the configuration's model is an algorithm around a student."""
    return 'architecture' in (cfg.get('model') or {})


def _foreign(hook: dict) -> bool:
    return not str(hook.get('type', '')).startswith('mmkd.')


def student_config(cfg: Config) -> Config:
    """The configuration with which MMDetection alone tests, exports or trains the student.

    The model becomes the student, and mmkd's hooks, distiller and imports go; data, schedule and the rest stay.
    """
    plain: dict[str, Any] = copy.deepcopy(cfg._cfg_dict.to_dict())
    if is_distillation(cfg):
        algorithm = plain['model']
        plain['model'] = algorithm['architecture']
        if algorithm.get('data_preprocessor') and not plain['model'].get('data_preprocessor'):
            plain['model']['data_preprocessor'] = algorithm['data_preprocessor']
    plain.pop('distiller', None)
    if 'custom_hooks' in plain:
        plain['custom_hooks'] = [hook for hook in plain['custom_hooks'] or () if _foreign(hook)]
    plain['default_hooks'] = {k: v for k, v in (plain.get('default_hooks') or {}).items() if v is None or _foreign(v)}
    imports = plain.pop('custom_imports', None) or {}
    names = imports.get('imports') or ()
    types = set(_types(plain))
    kept = [name for name in ([names] if isinstance(names, str) else names) if _is_needed(name, types)]
    if kept:
        plain['custom_imports'] = dict(imports, imports=kept)
    return Config(plain)


def _types(value: Any) -> Iterator[str]:
    """The last part of every `type` in a configuration."""
    if isinstance(value, dict):
        kind = value.get('type')
        if kind is not None:
            yield kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _types(child)


def _is_needed(name: str, types: set[str]) -> bool:
    """Whether a plain configuration still names a class of an imported module; one that is not known is kept."""
    if name == 'mmkd.compat':
        return False
    inside = [module for key, module in list(sys.modules.items()) if key == name or key.startswith(f'{name}.')]
    classes = [one for module in inside for one in vars(module).values() if isinstance(one, type)]
    own = {one.__name__ for one in classes if one.__module__ == name or one.__module__.startswith(f'{name}.')}
    return not own or bool(own & types)
