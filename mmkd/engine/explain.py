"""One sentence for an error: what a wrong name should have been, without the wrapping of MMEngine's registries."""

import re
from collections.abc import Iterator
from inspect import signature

from mmengine.registry import root
from mmengine.registry.registry import Registry

from mmkd.near_names import nearest

# mmengine 0.10.7 puts one of these before the message for every level of a nested configuration.
WRAPPING = re.compile(r'^(class `\w+` in \S+: )+')
UNREGISTERED = re.compile(r'(\S+) is not in the (\S+?)::(.+?) registry')
UNNAMED = re.compile(r"(?:must name a registered type, got|No connector is registered as) '(\S+)'")
UNKNOWN_ARGUMENT = re.compile(r"^(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")

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


def explain(error: BaseException) -> str:
    """Text of an error for a person: unwrapped, with the nearest names for an unknown type or argument."""
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
    unnamed = UNNAMED.search(text)
    if unnamed:
        return f'No connector is registered as {unnamed[1]!r}; {nearest(unnamed[1], registered_names("model"))}.'
    if argument:
        cls = _find_class(argument[1])
        options = [] if cls is None else [p for p in signature(cls).parameters if p not in ('args', 'kwargs')]
        return f'{argument[1]} takes no argument {argument[2]!r}; {nearest(argument[2], options)}.'
    return text or type(error).__name__
