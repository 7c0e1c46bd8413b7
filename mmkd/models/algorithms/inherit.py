"""Start parts of the student from the teacher's weights."""

from collections.abc import Iterable

import torch
from mmengine.logging import print_log
from torch import nn

from mmkd.near_names import nearest


def inherit_weights(student: nn.Module, teacher: nn.Module, parts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Copy the teacher's weights into children of the student wherever name and shape agree.

    Args:
        student: receives the weights.
        teacher: gives them.
        parts: names of children, such as `neck` and `bbox_head`.

    Returns:
        Keys that were copied, and keys of these parts that were not.

    Raises:
        ValueError: a part is not there on one side, or nothing of it fits.
    """
    copied: list[str] = []
    left: list[str] = []
    source = teacher.state_dict()
    for part in parts:
        for side, model in (('student', student), ('teacher', teacher)):
            names = [name for name, _ in model.named_modules() if name]
            if part not in names:
                raise ValueError(f'inherit: the {side} has no part {part!r}; {nearest(part, names)}.')
        own = {k: v for k, v in student.state_dict().items() if k.startswith(f'{part}.')}
        fits = [k for k, v in own.items() if k in source and source[k].shape == v.shape]
        if not fits:
            raise ValueError(f'inherit: no weight of {part!r} has the same name and shape in student and teacher.')
        with torch.no_grad():
            for key in fits:
                own[key].copy_(source[key])
        copied += fits
        left += [k for k in own if k not in fits]
    print_log(f'Inherited {len(copied)} tensors of the teacher, {len(left)} did not fit.', logger='current')
    return copied, left
