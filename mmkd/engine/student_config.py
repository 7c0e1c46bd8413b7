"""The plain MMDetection configuration of a student, without anything of mmkd's around it."""

import copy
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
        plain['custom_hooks'] = [hook for hook in plain['custom_hooks'] if _foreign(hook)]
    plain['default_hooks'] = {k: v for k, v in (plain.get('default_hooks') or {}).items() if v is None or _foreign(v)}
    imports = plain.get('custom_imports')
    if imports:
        kept = [name for name in imports['imports'] if name != 'mmkd.compat']
        plain['custom_imports'] = dict(imports, imports=kept)
        if not kept:
            plain.pop('custom_imports')
    return Config(plain)
