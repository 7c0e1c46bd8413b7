"""Module form of `mmkd.functional.gaussian_mask`: the data samples of a batch -> one mask a level."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd.functional.gaussian_mask import Shape, gaussian_box_mask
from mmkd.functional.reading import read_is_free
from mmkd.registry import MODELS


@MODELS.register_module()
class GaussianMask(nn.Module):
    """Foreground weight from the ground-truth boxes, for any loss that takes `mask=`.

    The frame is the network's input as the detector saw it: boxes and `batch_input_shape` are read after the data
    preprocessor, hence after mosaic, mixup and YOLOX's batch-level resizing, which rescale both.

    Args:
        shape: see `gaussian_box_mask`.
        kappa: see `gaussian_box_mask`.
        clip: see `gaussian_box_mask`.
        ignore_padding: weight 0 in cells beyond an image's own `img_shape`. MMDetection's `Pad` transform sets
            `img_shape` to the padded size; what it pads counts as image.
        padding: value of the cells that `ignore_padding` takes out: 0, background, or -1, which `MaskedFeatureLoss`
            without `gate` takes for neither object nor background (with it, and in every other loss, -1 is as 0).
        cells: (low, high): a box marks a level where its side, the root of its area, is at least `low` and less than
            `high` cells long, so that a level is told about the objects that it is there to find. The finest level
            takes all smaller ones too, the coarsest all larger ones. None: every box marks every level, as `uniform`
            does whatever the boxes.

    Raises:
        ValueError: `cells` that are not 0 <= low < high, another `padding`; as `gaussian_box_mask`, at the first batch.
    """

    sees_pyramid = True  # the distiller gives the third argument

    def __init__(
        self,
        *,
        shape: Shape = 'gaussian',
        kappa: float = 2.0,
        clip: bool = False,
        ignore_padding: bool = True,
        padding: float = 0.0,
        cells: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        pair = isinstance(cells, list | tuple) and len(cells) == 2
        if cells is not None and not (pair and 0 <= cells[0] < cells[1]):
            raise ValueError(f'cells must be two numbers, 0 <= low < high, or None, got {cells!r}.')
        if padding not in (0, -1):
            raise ValueError(f'padding must be 0 (background) or -1 (neither object nor background), got {padding!r}.')
        self.cells = cells
        self.padding = padding
        self.shape = shape
        self.kappa = kappa
        self.clip = clip
        self.ignore_padding = ignore_padding

    def forward(
        self, data_samples: Sequence[Any], feats: Sequence[Tensor], pyramid: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Masks on the grids of `feats`.

        Args:
            data_samples: one `DetDataSample` an image, with `gt_instances.bboxes` (tensor or `BaseBoxes`) and the
                metainfo `batch_input_shape`, `img_shape`.
            feats: (N, C, H, W) maps, of which only the grid and the device are read.
            pyramid: all levels that the network has, of which `feats` may be some: its finest takes the smaller boxes
                too, its coarsest the larger ones. `feats` when None.

        Returns:
            One (N, 1, H, W) in [0, 1] a map, or -1 in the padding.

        Raises:
            ValueError: a number of samples other than N, or metainfo that is absent or differs within the batch.
        """
        for level, feat in enumerate(feats):
            if feat.shape[0] != len(data_samples):
                raise ValueError(f'feats[{level}] holds {feat.shape[0]} images, data_samples {len(data_samples)}.')
        input_size = _input_size(data_samples)
        boxes = [_boxes(sample) for sample in data_samples]
        sizes = [tuple(sample.img_shape[:2]) for sample in data_samples] if self.ignore_padding else None
        strides = [_stride(feat, input_size) for feat in (feats if pyramid is None else pyramid)]
        masks = []
        for feat in feats:
            stride = _stride(feat, input_size)
            own = [self._own(image_boxes.to(feat.device), stride, strides) for image_boxes in boxes]
            grid = (tuple(feat.shape[-2:]), input_size)
            mask = gaussian_box_mask(own, *grid, shape=self.shape, kappa=self.kappa, clip=self.clip, image_sizes=sizes)
            if self.padding and sizes:
                inside = gaussian_box_mask(own, *grid, shape='uniform', image_sizes=sizes)
                mask = mask + self.padding * (1 - inside)
            masks.append(mask)
        return tuple(masks)

    def _own(self, boxes: Tensor, stride: float, strides: Sequence[float]) -> Tensor:
        if self.cells is None:
            return boxes
        side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt() / stride
        # by ratio, since the strides of odd maps differ a little from the powers of two
        low = self.cells[0] if stride > 1.01 * min(strides) else 0.0
        high = self.cells[1] if stride < 0.99 * max(strides) else float('inf')
        own = (side >= low) & (side < high)
        if read_is_free(boxes):
            return boxes[own]
        return boxes * own[:, None]  # without area, hence without weight: to drop them would wait for the device


def _stride(feat: Tensor, input_size: tuple[int, int]) -> float:
    """Px of the input per cell, the mean of both axes."""
    return (input_size[0] / feat.shape[-2] * input_size[1] / feat.shape[-1]) ** 0.5


def _input_size(data_samples: Sequence[Any]) -> tuple[int, int]:
    sizes = {tuple(sample.metainfo.get('batch_input_shape', ())) for sample in data_samples}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            'data_samples must carry one batch_input_shape in their metainfo (the data preprocessor sets it), '
            f'got {sorted(sizes)}.'
        )
    return sizes.pop()


def _boxes(sample: Any) -> Tensor:
    bboxes = sample.gt_instances.bboxes
    return getattr(bboxes, 'tensor', bboxes)
