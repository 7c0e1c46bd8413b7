"""Configurations that come inside a checkpoint, read as data: nothing of them is executed, nothing is imported.

A checkpoint may come from anywhere. MMEngine would run its configuration as Python, and its registries take any dotted
`type` for a callable to import: `dict(type='subprocess.Popen', ...)` in a model is a command.
"""

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import mmcv.ops
from mmengine.config import Config
from mmengine.registry import root
from mmengine.registry.registry import Registry

MAX_TEXT = 4 << 20  # characters; MMDetection's largest dump has about 20 000
# Packages whose registries may be imported to see whether they have a name.
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmrazor', 'mmkd', 'mmpretrain')
ADVICE = 'If you trust it, give the configuration by --config FILE, which runs it as Python.'


class UnsafeConfigError(ValueError):
    """A configuration inside a file that is more than data."""


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f'line {node.lineno} calls dict with more than names and values')
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(item) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    return ast.literal_eval(node)


def parse_config(text: str, name: str) -> Config:
    """Read a dumped configuration: assignments of literals and `dict(...)`.

    Args:
        text: as `Config.pretty_text` writes it.
        name: what to call it in messages.

    Raises:
        UnsafeConfigError: it is longer than any configuration, or holds more than assignments of literals.
    """
    if len(text) > MAX_TEXT:
        raise UnsafeConfigError(f'{name} has {len(text)} characters, more than {MAX_TEXT}: that is no configuration.')
    found: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            plain = isinstance(statement, ast.Assign) and len(statement.targets) == 1
            if not plain or not isinstance(statement.targets[0], ast.Name):
                raise ValueError(f'line {statement.lineno} is no assignment')
            found[statement.targets[0].id] = _value(statement.value)
        return Config(found)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise UnsafeConfigError(f'{name} is not plain data ({reason}). {ADVICE}') from error


def _types(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every `type` in nested dictionaries, with where it stands."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = f'{path}.{key}'.lstrip('.')
        if key == 'type':
            yield here, value
        if isinstance(value, dict | list | tuple | set):
            yield from _types(value, here)


def _registries(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _registries(child)


def _registered(packages: set[str]) -> tuple[set[str], set[Any]]:
    """Names (also with their scope) and objects in the registries of the packages that are installed."""
    for package in packages & set(PACKAGES):
        if find_spec(package) is not None and find_spec(f'{package}.registry') is not None:
            importlib.import_module(f'{package}.registry')
    names: set[str] = set()
    objects: set[Any] = set()
    for top in [value for value in vars(root).values() if isinstance(value, Registry)]:
        for registry in _registries(top):
            registry.import_from_location()
            names |= {*registry.module_dict, *(f'{registry.scope}.{name}' for name in registry.module_dict)}
            objects |= {id(value) for value in registry.module_dict.values()}
    return names, objects


def _is_registered_path(name: str, objects: set[Any]) -> bool:
    """Whether a dotted name, as a pure-Python configuration dumps it, leads to a registered object."""
    module, _, attribute = name.rpartition('.')
    if name.split('.')[0] not in PACKAGES or not module:
        return False
    try:
        return id(getattr(importlib.import_module(module), attribute, None)) in objects
    except ImportError:
        return False


def check_types(cfg: Config, name: str) -> None:
    """Refuse a configuration that names what no registry holds, or modules to import.

    A name without a dot can at most import a module of that name; it must be known where the export builds: in `model`.

    Args:
        cfg: the configuration, read by `parse_config`.
        name: what to call it in messages.

    Raises:
        UnsafeConfigError: for the first such name.
    """
    imports = list((cfg.get('custom_imports') or {}).get('imports') or [])
    foreign = [module for module in imports if str(module).split('.')[0] not in PACKAGES]
    if foreign:
        raise UnsafeConfigError(f'{name} wants to import {", ".join(map(str, foreign))}. {ADVICE}')
    content = cfg._cfg_dict.to_dict()
    if 'architecture' in (content.get('model') or {}):  # an export drops the distiller around a student unbuilt
        content = dict(content, distiller=None, model=dict(content['model'], distiller=None))
    found = list(_types(content, ''))
    scopes = {kind.split('.')[0] for _, kind in found if isinstance(kind, str) and '.' in kind}
    names, objects = _registered({'mmdet', *scopes})
    for path, kind in found:
        if not isinstance(kind, str):
            raise UnsafeConfigError(f'{name}: {path} must be a name, got {kind!r}.')
        if kind in names or ('.' not in kind and (hasattr(mmcv.ops, kind) or not path.startswith('model.'))):
            continue
        if not _is_registered_path(kind, objects):
            raise UnsafeConfigError(f'{name}: {path} is {kind!r}, which no registry of {PACKAGES} holds. {ADVICE}')
