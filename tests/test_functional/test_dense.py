"""Maps of a dense head as rows. Shapes: `N` images, `A` anchors, `K` classes, `H, W` cells."""

import pytest
import torch

from mmkd.functional.dense import flatten_levels, infer_num_classes

SHAPES = [(2, 6, 3, 5), (2, 6, 1, 2)]


def test_rows_run_over_image_level_row_column_anchor() -> None:
    maps = [torch.arange(float(torch.Size(s).numel())).reshape(s) for s in SHAPES]
    rows = flatten_levels(maps, num_classes=3)
    expected = [
        [level[n, a * 3 + k, y, x].item() for k in range(3)]
        for n in range(2)
        for level in maps
        for y in range(level.shape[2])
        for x in range(level.shape[3])
        for a in range(2)
    ]
    assert rows.tolist() == expected


def test_order_is_that_of_an_mmdetection_anchor_head() -> None:
    """AnchorHead reads (N, A * K, H, W) by permute(0, 2, 3, 1).reshape(N, -1, K) and joins the levels of an image."""
    maps = [torch.randn(s) for s in SHAPES]
    joined = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, 3) for m in maps], dim=1)
    assert torch.equal(flatten_levels(maps, 3), joined.reshape(-1, 3))


@pytest.mark.parametrize('classes', [1, 2, 3, 6])
def test_number_of_classes_follows_from_the_number_of_labels(classes: int) -> None:
    maps = [torch.zeros(s) for s in SHAPES]
    assert infer_num_classes(maps, len(flatten_levels(maps, classes))) == classes


def test_refuses_maps_and_labels_that_do_not_fit() -> None:
    maps = [torch.zeros(s) for s in SHAPES]
    with pytest.raises(ValueError, match='7 labels do not divide'):
        infer_num_classes(maps, 7)
    with pytest.raises(ValueError, match='0 labels do not divide'):
        infer_num_classes(maps, 0)
    with pytest.raises(ValueError, match='at least one level'):
        flatten_levels([], 3)
    with pytest.raises(ValueError, match=r'Level 0 must be .* K = 4'):
        flatten_levels(maps, 4)
    with pytest.raises(ValueError, match=r'Level 1 must be .* N = 2'):
        flatten_levels([maps[0], torch.zeros(1, 6, 1, 2)], 3)
