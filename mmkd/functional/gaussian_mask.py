"""Where the objects are: ground-truth boxes -> foreground weight on the grid of a feature.

Shapes: `N` images, `M` boxes of one image, `H, W` cells of one level. Boxes (x1, y1, x2, y2) in px of the padded
network input; the stride of a level is input size / feature size, one for each axis, and need not be an integer.
A cell's centre lies at (index + 0.5) * stride.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmkd.functional.reading import read_is_free

Shape = Literal['gaussian', 'centernet', 'binary', 'uniform']
_Pair = tuple[Tensor, Tensor]  # (M, H), (M, W): every shape is a product of a weight along y and one along x


def gaussian_box_mask(
    boxes: Sequence[Tensor],
    feature_size: tuple[int, int],
    input_size: tuple[int, int],
    *,
    shape: Shape = 'gaussian',
    kappa: float = 2.0,
    clip: bool = False,
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Foreground weight of every cell from the boxes of a batch.

    `M(x, y) = max_k exp(-(x - cx_k)^2 / (2 sx_k^2) - (y - cy_k)^2 / (2 sy_k^2))` with
    `sx = max(w / (2 kappa), stride / 2)` and the same for y: at a box's edge `kappa` sigma are reached
    (exp(-2) = 0.135 for 2), and a box smaller than a cell still marks its cell.

    Idea: Jia et al. 2024 (MSSD), abstract, https://doi.org/10.1007/s44267-024-00040-3. The formula is not published;
    this project's choice, see `docs/mssd.md`. Isotropic form: Zhou et al. 2019 (CenterNet), section 3,
    https://arxiv.org/abs/1904.07850, with the radius for an IoU of 0.3 as in MMDetection.

    Args:
        boxes: one (M, 4) an image; M may be 0. A box without area, with a value that is not finite, or wholly outside
            its image has no weight.
        feature_size: (H, W) of the level.
        input_size: (height, width) of the padded input, in px.
        shape: `gaussian`, sigma from width and height; `centernet`, one radius, centred on a cell; `binary`, 1 in
            cells whose centre a box covers; `uniform`, 1 in every cell of the image, whatever the boxes.
        kappa: number of sigma from centre to edge, > 0; `gaussian` only.
        clip: 0 in cells whose centre no box covers.
        image_sizes: (height, width) of each image before padding, in px; cells whose centre is in the padding get 0.
            None: the padding counts as image.

    Returns:
        (N, 1, H, W), in [0, 1], on the boxes' device, without gradient.

    Raises:
        ValueError: a size that is not positive, an unknown shape, kappa <= 0, boxes that are not (M, 4), or another
            number of image sizes than of images.
    """
    _check(boxes, feature_size, input_size, kappa, image_sizes)
    if shape != 'uniform' and shape not in _ALONG:
        raise ValueError(f'shape must be one of {[*sorted(_ALONG), "uniform"]}, got {shape!r}.')
    sizes = image_sizes if image_sizes is not None else [input_size] * len(boxes)
    stride = (input_size[0] / feature_size[0], input_size[1] / feature_size[1])
    masks = []
    for image_boxes, size in zip(boxes, sizes, strict=True):
        kept, weight = _visible(image_boxes.detach(), size)
        centre_y, centre_x = _cell_centres(feature_size, stride, kept)
        inside = (centre_y < size[0])[:, None] & (centre_x < size[1])[None, :]
        if shape == 'uniform':
            masks.append(inside.to(kept.dtype))
            continue
        along_y, along_x = _ALONG[shape](kept, centre_y, centre_x, stride, kappa)
        if clip:
            covered_y, covered_x = _binary(kept, centre_y, centre_x, stride, kappa)
            along_y, along_x = along_y * covered_y, along_x * covered_x
        masks.append(_largest(along_y * weight[:, None], along_x) * inside)
    return torch.stack(masks).unsqueeze(1)


def _check(
    boxes: Sequence[Tensor],
    feature_size: tuple[int, int],
    input_size: tuple[int, int],
    kappa: float,
    image_sizes: Sequence[tuple[int, int]] | None,
) -> None:
    for name, size in (('feature_size', feature_size), ('input_size', input_size)):
        if len(size) != 2 or min(size) <= 0:
            raise ValueError(f'{name} must be two positive numbers (height, width), got {tuple(size)}.')
    if not kappa > 0:
        raise ValueError(f'kappa must be > 0, got {kappa}.')
    if len(boxes) == 0:
        raise ValueError('boxes must hold one (M, 4) tensor for each image, got none.')
    for index, image_boxes in enumerate(boxes):
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f'boxes of image {index} must be (M, 4), got {tuple(image_boxes.shape)}.')
    if image_sizes is not None and len(image_sizes) != len(boxes):
        raise ValueError(f'image_sizes must hold one size for each of {len(boxes)} images, got {len(image_sizes)}.')


def _visible(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(M, 4) -> those that have an area and touch the image, at least float32, and their (M,) weight.

    Off the CPU all stay, the others with weight 0: to drop them would wait for the device to say how many there are.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    x1, y1, x2, y2 = boxes.unbind(1)
    keep = (x2 > x1) & (y2 > y1) & (x2 > 0) & (y2 > 0) & (x1 < size[1]) & (y1 < size[0]) & boxes.isfinite().all(1)
    if read_is_free(boxes):
        return boxes[keep], boxes.new_ones(1)
    return boxes.where(keep[:, None], 0.0), keep.to(boxes.dtype)


def _cell_centres(feature_size: tuple[int, int], stride: tuple[float, float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres in px: (H,) of the rows, (W,) of the columns."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) for n in feature_size)
    return (rows + 0.5) * stride[0], (columns + 0.5) * stride[1]


def _largest(along_y: Tensor, along_x: Tensor) -> Tensor:
    """Maximum over boxes of the product of two one-dimensional weights: (M, H), (M, W) -> (H, W)."""
    if len(along_y) == 0:
        return along_y.new_zeros(along_y.shape[1], along_x.shape[1])
    return (along_y[:, :, None] * along_x[:, None, :]).amax(0)


def _gaussian(boxes: Tensor, centre_y: Tensor, centre_x: Tensor, stride: tuple[float, float], kappa: float) -> _Pair:
    def along(low: Tensor, high: Tensor, centres: Tensor, step: float) -> Tensor:
        sigma = ((high - low) / (2 * kappa)).clamp(min=step / 2)
        distance = centres[None] - ((low + high) / 2)[:, None]
        return torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2))

    x1, y1, x2, y2 = boxes.unbind(1)
    return along(y1, y2, centre_y, stride[0]), along(x1, x2, centre_x, stride[1])


def _centernet(boxes: Tensor, centre_y: Tensor, centre_x: Tensor, stride: tuple[float, float], kappa: float) -> _Pair:
    x1, y1, x2, y2 = boxes.unbind(1)
    radius = gaussian_radius((y2 - y1) / stride[0], (x2 - x1) / stride[1]).floor().clamp(min=0)
    sigma = (2 * radius + 1) / 6

    def along(low: Tensor, high: Tensor, centres: Tensor, step: float) -> Tensor:
        cell = torch.arange(len(centres), dtype=centres.dtype, device=centres.device)
        distance = cell[None] - ((low + high) / 2 / step).floor()[:, None]
        return torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2)) * (distance.abs() <= radius[:, None])

    return along(y1, y2, centre_y, stride[0]), along(x1, x2, centre_x, stride[1])


def _binary(boxes: Tensor, centre_y: Tensor, centre_x: Tensor, stride: tuple[float, float], kappa: float) -> _Pair:
    def along(low: Tensor, high: Tensor, centres: Tensor) -> Tensor:
        return ((centres[None] >= low[:, None]) & (centres[None] <= high[:, None])).to(boxes.dtype)

    x1, y1, x2, y2 = boxes.unbind(1)
    return along(y1, y2, centre_y), along(x1, x2, centre_x)


_ALONG: dict[str, Callable[[Tensor, Tensor, Tensor, tuple[float, float], float], _Pair]] = {
    'gaussian': _gaussian,
    'centernet': _centernet,
    'binary': _binary,
}


def gaussian_radius(height: Tensor, width: Tensor, *, min_overlap: float = 0.3) -> Tensor:
    """Radius in which a corner may move so that the moved box keeps an overlap with the box.

    Smallest of the three solutions for: one corner in and one out, both in, both out. Law & Deng 2018 (CornerNet),
    section 3.2, https://arxiv.org/abs/1808.01244.

    Args:
        height: (M,) of the boxes, in cells.
        width: (M,) of the boxes, in cells.
        min_overlap: IoU to keep, in (0, 1).

    Returns:
        (M,) in cells.

    Raises:
        ValueError: `min_overlap` outside (0, 1).
    """
    if not 0 < min_overlap < 1:
        raise ValueError(f'min_overlap must be in (0, 1), got {min_overlap}.')
    total, area = height + width, height * width

    def smaller_root(a: float, b: Tensor, c: Tensor) -> Tensor:  # a r^2 - b r + c = 0
        return (b - (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)

    mixed = smaller_root(1, total, area * (1 - min_overlap) / (1 + min_overlap))
    inside = smaller_root(4, 2 * total, area * (1 - min_overlap))
    # both corners out: 4 o r^2 + 2 o (h + w) r - (1 - o) h w = 0, its positive solution
    b = 2 * min_overlap * total
    outside = (-b + (b**2 + 16 * min_overlap * (1 - min_overlap) * area).sqrt()) / (8 * min_overlap)
    return torch.minimum(torch.minimum(mixed, inside), outside)
