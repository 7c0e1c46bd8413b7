"""What the first iterations show: losses that never change or teach nobody, records that never come."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.engine.listener import RunListener
from mmkd.models.autograd_graph import hides_leaves, leaf_of, nodes_behind


def reaches(value: Tensor, parameters: set[int]) -> bool:
    """Whether the graph behind a loss leads to one of the parameters (by `id`); nothing is computed."""
    return any(id(leaf_of(node)) in parameters or hides_leaves(node) for node in nodes_behind([value]))


class FirstSteps:
    """Watches the first iterations and then says what looks wrong.

    Args:
        model: the algorithm (or a plain detector: then only its losses are watched).
        count: number of iterations.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model = model
        self.left = count
        self.count = count
        self.values: dict[str, list[Tensor]] = {}
        self.judged: dict[str, bool] = {}
        self.fired: Counter = Counter()
        self.expected: list[str] = []
        self._handles: list[Any] = []
        student = getattr(model, 'architecture', model)
        self._student = {id(p) for p in student.parameters() if p.requires_grad}
        if hasattr(model, 'distiller') and count:
            self._listen('student', student, True)
            if hasattr(model, '_teacher'):
                self._listen('teacher', model.teacher, False)

    def _listen(self, side: str, network: nn.Module, from_student: bool) -> None:
        for source in self.model.distiller.module_sources(from_student=from_student):
            name = f'{side} {source}'
            self.expected.append(name)
            # before the hooks that stop the teacher behind its last recorded layer
            handle = network.get_submodule(source).register_forward_hook(RunListener(self._note(name)), prepend=True)
            self._handles.append(handle)

    def _note(self, name: str) -> Callable:
        def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.fired[name] += 1

        return note

    def _base(self, name: str) -> str | None:
        """Name of the distillation loss behind an entry such as `distill.loss_ssim_p3`."""
        losses = getattr(getattr(self.model, 'distiller', None), 'mappings', ())
        return max((loss for loss in losses if name.startswith(f'distill.{loss}')), key=len, default=None)

    def look(self, losses: dict[str, Tensor]) -> list[str]:
        """Take the losses of one iteration, still in their graph.

        Returns:
            What is wrong, once the last of the watched iterations has come; else nothing.
        """
        if not self.left:
            return []
        self.left -= 1
        sums: dict[str, Tensor] = {}
        for name, value in losses.items():
            base = self._base(name)
            if base is not None and not self.model.distiller.active(base):
                continue
            # a level alone may well stay 0: no object of its size
            whole = name.split('[')[0] if base is None else base
            sums[whole] = sums.get(whole, 0) + value.detach()
            if base is not None and not self.judged.get(base):
                self.judged[base] = reaches(value, self._student)
        for name, value in sums.items():
            self.values.setdefault(name, []).append(value)
        return [] if self.left else self._report()

    def _report(self) -> list[str]:
        for handle in self._handles:
            handle.remove()
        found = [f'{name} gives the student no gradient.' for name, reached in self.judged.items() if not reached]
        for name, values in self.values.items():
            if len(values) > 2 and bool((torch.stack(values) == values[0]).all()):
                found.append(
                    f'{name} was exactly {values[0].item():.6g} in each of the first {len(values)} iterations.'
                )
        if any(self.judged) or not self.values:
            silent = [name for name in self.expected if not self.fired[name]]
            found += [f'The recorded layer {name} did not run in the first {self.count} iterations.' for name in silent]
        return found
