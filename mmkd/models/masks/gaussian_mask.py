"""Module form of `mmkd.functional.gaussian_mask`: the data samples of a batch -> one mask a level."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd.functional.gaussian_mask import Shape, gaussian_box_mask
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

    Raises:
        ValueError: as `gaussian_box_mask`, at the first batch.
    """

    def __init__(
        self, *, shape: Shape = 'gaussian', kappa: float = 2.0, clip: bool = False, ignore_padding: bool = True
    ) -> None:
        super().__init__()
        self.shape = shape
        self.kappa = kappa
        self.clip = clip
        self.ignore_padding = ignore_padding

    def forward(self, data_samples: Sequence[Any], feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Masks on the grids of `feats`.

        Args:
            data_samples: one `DetDataSample` an image, with `gt_instances.bboxes` (tensor or `BaseBoxes`) and the
                metainfo `batch_input_shape`, `img_shape`.
            feats: (N, C, H, W) maps, of which only the grid and the device are read.

        Returns:
            One (N, 1, H, W) in [0, 1] a map.

        Raises:
            ValueError: a number of samples other than N, or metainfo that is absent or differs within the batch.
        """
        for level, feat in enumerate(feats):
            if feat.shape[0] != len(data_samples):
                raise ValueError(f'feats[{level}] holds {feat.shape[0]} images, data_samples {len(data_samples)}.')
        input_size = _input_size(data_samples)
        boxes = [_boxes(sample) for sample in data_samples]
        sizes = [tuple(sample.img_shape[:2]) for sample in data_samples] if self.ignore_padding else None
        return tuple(
            gaussian_box_mask(
                [image_boxes.to(feat.device) for image_boxes in boxes],
                tuple(feat.shape[-2:]),
                input_size,
                shape=self.shape,
                kappa=self.kappa,
                clip=self.clip,
                image_sizes=sizes,
            )
            for feat in feats
        )


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
