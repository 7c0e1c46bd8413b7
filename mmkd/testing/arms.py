"""One arm of an experiment: a method, under a name of its own where options change it.

`ssim` is the method as it ships. `ikd-logit=ikd,distiller.distill_losses.loss_ikd_feature.loss.loss_weight=0` is an arm
called `ikd-logit`: the method `ikd` with the options that follow, each a key below `model.` as for `--cfg-options`.
`plain-fast=plain,lr=0.004` has a peak learning rate of its own, which every method can have, `plain` too.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, DictAction

from mmkd.testing.methods import PLAIN, PLAIN_TIME

LR = 'lr'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


@dataclass(frozen=True)
class Arm:
    """What an arm is.

    Args:
        name: In tables and of its folder.
        method: Stem of a file in `configs/_base_/methods`, or `plain`.
        options: Pairs of a key below `model.` and a text that is read as `--cfg-options` reads it; or of `lr` and the
            arm's own peak learning rate.
    """

    name: str
    method: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def lr(self) -> float | None:
        """Peak learning rate of this arm; None for that of the experiment."""
        return own_rate(self.options)

    @property
    def model_options(self) -> tuple[tuple[str, str], ...]:
        """The options that change the model."""
        return tuple(pair for pair in self.options if pair[0] != LR)

    def apply(self, model: dict) -> dict:
        """Model config with the options in it.

        Args:
            model: Config of an algorithm.

        Returns:
            A new config.

        Raises:
            ValueError: Where a key is not in the model: a misspelt option would change nothing.
        """
        cfg = Config({'model': model})
        for key, text in self.model_options:
            _refuse_unknown(model, key, self.name)
            cfg.merge_from_dict({f'model.{key}': _value(text)})
        return cfg.model.to_dict()


def parse_arm(text: str) -> Arm:
    """Read one word of `--methods`.

    Args:
        text: `METHOD`, or `NAME=METHOD,KEY=VALUE,...`.

    Returns:
        The arm; whether the method exists is not looked at.

    Raises:
        ValueError: For a name that cannot be a folder, an option without a value or that is given twice, or a learning
            rate that is none.
    """
    name, equals, rest = text.partition('=')
    method, *options = _split(rest) if equals else [name]
    for part in (name, method):
        if not _NAME.fullmatch(part):
            raise ValueError(f'an arm is METHOD, or NAME=METHOD,KEY=VALUE,...; got {text!r}')
    if name in (PLAIN, PLAIN_TIME) and method != name:
        raise ValueError(f'{name} is the name of plain training, got {text!r}: give that arm another name')
    pairs: list[tuple[str, str]] = []
    for option in options:
        key, _, value = option.partition('=')
        if not (key and value):
            raise ValueError(f'{name}: an option is KEY=VALUE, got {option!r}')
        key = key.removeprefix('model.')
        if key in dict(pairs):
            raise ValueError(f'{name}: {key} is given twice')
        if key == LR and name in (PLAIN, PLAIN_TIME):
            raise ValueError(f'{name} is trained at the learning rate of --lr; give that arm another name')
        if key == LR and not _is_rate(value):
            raise ValueError(f'{name}: lr must be a positive number, got {value!r}')
        pairs.append((key, value))
    return Arm(name, method, tuple(pairs))


def own_rate(options: Iterable[Sequence[str]]) -> float | None:
    """The peak learning rate among the options of an arm.

    Args:
        options: Pairs of key and text, as in `Arm` and in a store.

    Returns:
        The rate; None where the arm has that of the experiment.
    """
    return next((float(text) for key, text in options if key == LR), None)


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _split(text: str) -> list[str]:
    """Parts between commas that are in no bracket."""
    parts, depth = [''], 0
    for letter in text:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return parts


def _value(text: str) -> Any:
    return DictAction._parse_iterable(text)


def _refuse_unknown(model: dict, key: str, arm: str) -> None:
    """A key must exist up to its last part, which may be an argument that the config leaves at its default.

    `changes` of a self-teacher are keys of the student, from whose config the self-teacher is made.
    """
    whole = key
    if key.startswith('changes.') and 'self_teacher' in model:
        model, key = model['architecture'], key.removeprefix('changes.')
    node: Any = model
    *path, _ = key.split('.')
    for depth, part in enumerate(path):
        inside = node.get(part) if isinstance(node, dict) else _element(node, part)
        if inside is None:
            there = sorted(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else node
            of = 'the student' if whole != key else 'its model'
            raise ValueError(f'{arm}: no {".".join(path[: depth + 1])!r} in {of}; there are: {list(there)}')
        node = inside


def _element(node: Any, index: str) -> Any:
    if isinstance(node, list | tuple) and index.isdigit() and int(index) < len(node):
        return node[int(index)]
    return None
