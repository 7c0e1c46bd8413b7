"""What lies behind a value in autograd's graph; nothing is computed."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def nodes_behind(values: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph behind some values, each once."""
    pending, seen = [value.grad_fn for value in values], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending.extend(function for function, _ in node.next_functions)


def leaf_of(node: Any) -> Tensor | None:
    """The parameter (or other leaf) whose gradient a node collects."""
    return getattr(node, 'variable', None)


def hides_leaves(node: Any) -> bool:
    """Whether parameters may be used inside a node without showing: activation checkpointing of the reentrant kind."""
    return 'Checkpoint' in type(node).__name__
