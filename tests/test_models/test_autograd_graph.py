"""What lies behind a value in autograd's graph."""

import torch
from torch.utils.checkpoint import checkpoint

from mmkd.models.autograd_graph import hides_leaves, leaf_of, nodes_behind


def leaves(*values: torch.Tensor) -> list[int]:
    return [id(leaf) for leaf in map(leaf_of, nodes_behind(values)) if leaf is not None]


def test_every_leaf_is_found_once_and_what_is_cut_off_is_not():
    used, shared, cut = (torch.ones(2, requires_grad=True) for _ in range(3))
    value = (used * shared).sum() + (shared * cut.detach()).sum()
    assert sorted(leaves(value, shared.exp())) == sorted([id(used), id(shared)])
    assert leaves(torch.ones(2)) == []


def test_nothing_of_the_graph_is_freed_or_computed():
    x = torch.ones(2, requires_grad=True)
    value = x.square().sum()
    list(nodes_behind([value]))
    assert x.grad is None
    value.backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_reentrant_checkpoint_hides_what_is_used_inside():
    layer = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    hidden = checkpoint(layer, x, use_reentrant=True)
    assert any(map(hides_leaves, nodes_behind([hidden]))) and id(layer.weight) not in leaves(hidden)
    open_ = checkpoint(layer, x, use_reentrant=False)
    assert not any(map(hides_leaves, nodes_behind([open_]))) and id(layer.weight) in leaves(open_)
