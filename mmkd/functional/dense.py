"""The maps of a dense head as rows, in the order in which MMDetection's heads concatenate them.

Shapes: `N` images, `A` anchors of a cell, `K` logits of an anchor, `H, W` cells of a level, `P` all points of the
batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten_levels(maps: Sequence[Tensor], num_classes: int) -> Tensor:
    """Rows of logits of a pyramid: image-major, then level, row, column, anchor.

    Args:
        maps: one (N, A * K, H, W) map a level; channels are anchor-major, then class.
        num_classes: K.

    Returns:
        (P, K) with P = N * sum of H * W * A over the levels.

    Raises:
        ValueError: no level, images differ in number, or channels are no multiple of `num_classes`.
    """
    if not maps:
        raise ValueError('maps must hold at least one level.')
    images = maps[0].shape[0]
    for level, value in enumerate(maps):
        if value.dim() != 4 or value.shape[0] != images or num_classes < 1 or value.shape[1] % num_classes:
            raise ValueError(
                f'Level {level} must be (N, A * K, H, W) with N = {images} and K = {num_classes}, '
                f'got {tuple(value.shape)}.'
            )
    # (N, A * K, H, W) -> (N, H * W * A, K)
    rows = [value.permute(0, 2, 3, 1).reshape(images, -1, num_classes) for value in maps]
    return torch.cat(rows, dim=1).flatten(0, 1)


def infer_num_classes(maps: Sequence[Tensor], num_rows: int) -> int:
    """Logits of a row, from the size of the maps and the number of rows they must give.

    Args:
        maps: one (N, A * K, H, W) map a level.
        num_rows: P, for instance the number of assigned labels.

    Returns:
        K.

    Raises:
        ValueError: no whole number K gives `num_rows` rows.
    """
    values = sum(value.numel() for value in maps)
    if num_rows < 1 or values % num_rows:
        sizes = [tuple(value.shape) for value in maps]
        raise ValueError(f'{num_rows} labels do not divide the {values} logits of the levels {sizes}.')
    return values // num_rows
