"""One sentence for an error: what a wrong name should have been, without the wrapping of MMEngine's registries."""

import re
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any

from mmengine.registry import root
from mmengine.registry.registry import Registry

from mmkd.near_names import nearest

# mmengine 0.10.7 puts one of these before the message for every level of a nested configuration.
WRAPPING = re.compile(r'^(class `\w+` in \S+: )+')
UNREGISTERED = re.compile(r'(\S+) is not in the (\S+?)::(.+?) registry')
UNNAMED = re.compile(r"(?:must name a registered type, got|No connector is registered as) '(\S+)'")
UNKNOWN_ARGUMENT = re.compile(r"^(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
# mmengine writes the two dictionaries among which no type is: a part of a configuration, and the defaults or None.
UNTYPED = re.compile(r'must contain the key "type", but got (.*)\n.*$', re.DOTALL)

RECORDER = 'Recorder'


def _family(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _family(child)


def _registries() -> list[Registry]:
    return [value for value in vars(root).values() if isinstance(value, Registry)]


def registered_names(kind: str) -> dict[str, type]:
    """Everything registered under a kind such as `model`, in every scope; names of other scopes than MMDetection's
    are given with their scope.
    """
    found: dict[str, type] = {}
    for registry in _registries():
        for child in _family(registry) if registry.name == kind else ():
            prefix = '' if child.scope in ('mmengine', 'mmdet') else f'{child.scope}.'
            found |= {prefix + name: value for name, value in child.module_dict.items()}
    return found


def _find_class(name: str) -> type | None:
    for registry in _registries():
        for child in _family(registry):
            for value in child.module_dict.values():
                if getattr(value, '__name__', None) == name:
                    return value
    return None


def _called(name: str, error: BaseException | None) -> Callable | None:
    """What an error calls by its name: something that its callers knew under it, or a registered class."""
    while error is not None:
        trace, frames = error.__traceback__, []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):  # the innermost is the caller
            for known in (frame.f_locals, frame.f_globals):
                if callable(known.get(name)):
                    return known[name]
        error = error.__cause__ or error.__context__
    return _find_class(name)


def _arguments(called: Callable) -> list[str]:
    """Arguments by name; none where Python does not know them, as of some functions in C."""
    try:
        parameters = signature(called).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != 'self']


def _entries(node: Any, path: str = '') -> Iterator[tuple[str, str, Mapping, Mapping]]:
    """Every dictionary below one: its name with dots, its key, itself, and the dictionary (or none) that holds it."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in items:
        here = f'{path}[{key}]' if not isinstance(node, Mapping) else f'{path}.{key}' if path else str(key)
        if isinstance(value, Mapping):
            yield here, str(key), value, node if isinstance(node, Mapping) else {}
        if isinstance(value, Mapping | list | tuple):
            yield from _entries(value, here)


def _untyped(given: str, config: Mapping[str, Any]) -> str:
    """Where in a configuration the part stands that MMEngine printed because it has no type, and what may be meant."""
    for path, key, value, holder in _entries(config):
        if 'type' not in value and str(value) == given:
            options = [k for k, v in holder.items() if isinstance(v, Mapping) and 'type' in v]
            return f'{path} has no "type"{f"; {nearest(key, options)}" if options else ""}.'
    return f'A part of the configuration has no "type": {given}.'


def explain(error: BaseException, config: Mapping[str, Any] | None = None) -> str:
    """Text of an error for a person: unwrapped, with the nearest names for an unknown type or argument.

    Args:
        error: what was raised.
        config: what was built meanwhile, to say where in it a part without type stands.

    Returns:
        One sentence where the error is a known one, else its own text.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = WRAPPING.sub('', text).strip('"')
    unregistered, argument = UNREGISTERED.search(text), UNKNOWN_ARGUMENT.search(text)
    if unregistered:
        name, kind = unregistered[1], unregistered[3]
        options = list(registered_names(kind))
        if kind == 'task util' and name.endswith(RECORDER):  # MMRazor adds the ending by itself
            kind, name = 'recorder', name.removesuffix(RECORDER)
            options = [o.rpartition('.')[2].removesuffix(RECORDER) for o in options if o.endswith(RECORDER)]
        return f'No {kind} is registered as {name!r}; {nearest(name, options)}.'
    unnamed, untyped = UNNAMED.search(text), UNTYPED.search(text)
    if unnamed:
        return f'No connector is registered as {unnamed[1]!r}; {nearest(unnamed[1], registered_names("model"))}.'
    if untyped:
        return _untyped(untyped[1], config or {})
    if argument:
        called = _called(argument[1], error)
        options = _arguments(called) if called is not None else []
        near = f'; {nearest(argument[2], options)}' if options else ''
        return f'{argument[1]} takes no argument {argument[2]!r}{near}.'
    return text or type(error).__name__
