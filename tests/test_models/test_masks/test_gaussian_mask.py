"""`GaussianMask`: data samples -> masks on the grids of a pyramid, in the frame of the network's input."""

import pytest
import torch
from mmdet.models.data_preprocessors import BatchSyncRandomResize, DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from mmkd.functional.gaussian_mask import gaussian_box_mask
from mmkd.models.masks.gaussian_mask import GaussianMask


def sample(boxes: list, size: tuple[int, int], *, as_boxes: bool = False) -> DetDataSample:
    """A data sample as the data pipeline leaves it: boxes in px of its own image."""
    bboxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = InstanceData(
        bboxes=HorizontalBoxes(bboxes) if as_boxes else bboxes, labels=torch.zeros(len(bboxes), dtype=torch.long)
    )
    return DetDataSample(metainfo=dict(img_shape=size, ori_shape=size), gt_instances=instances)


def prepared(preprocessor: DetDataPreprocessor, samples: list) -> tuple[torch.Tensor, list]:
    """Inputs and data samples as the detector's loss gets them in training."""
    images = [torch.zeros(3, *each.img_shape, dtype=torch.uint8) for each in samples]
    data = preprocessor(dict(inputs=images, data_samples=samples), True)
    return data['inputs'], data['data_samples']


def feats(inputs: torch.Tensor, strides: tuple[int, ...] = (8, 16)) -> tuple[torch.Tensor, ...]:
    return tuple(inputs.new_zeros(len(inputs), 5, inputs.shape[2] // s, inputs.shape[3] // s) for s in strides)


@pytest.mark.parametrize('as_boxes', [False, True])
@pytest.mark.parametrize('boxtype2tensor', [False, True])
def test_reads_the_batch_of_images_of_different_size(as_boxes, boxtype2tensor):
    preprocessor = DetDataPreprocessor(pad_size_divisor=32, boxtype2tensor=boxtype2tensor)
    boxes = [[[8, 4, 40, 44]], [[60, 20, 150, 90], [0, 0, 20, 20]]]
    samples = [sample(boxes[0], (50, 70), as_boxes=as_boxes), sample(boxes[1], (90, 160), as_boxes=as_boxes)]
    inputs, samples = prepared(preprocessor, samples)
    assert inputs.shape == (2, 3, 96, 160)
    masks = GaussianMask()(samples, feats(inputs))
    assert [tuple(mask.shape) for mask in masks] == [(2, 1, 12, 20), (2, 1, 6, 10)]
    tensors = [torch.tensor(each, dtype=torch.float32) for each in boxes]
    expected = gaussian_box_mask(tensors, (12, 20), (96, 160), image_sizes=[(50, 70), (90, 160)])
    torch.testing.assert_close(masks[0], expected, rtol=0, atol=0)
    assert masks[0][0, 0, 7:].sum() == 0  # cells whose centre lies below the first image's 50 px
    assert GaussianMask(ignore_padding=False)(samples, feats(inputs))[0][0, 0, 7:].sum() > 0


def test_follows_the_batch_level_resizing_of_yolox():
    resize = BatchSyncRandomResize(random_size_range=(192, 256), interval=1, size_divisor=32)
    preprocessor = DetDataPreprocessor(pad_size_divisor=32)
    preprocessor.batch_augments = [resize]
    MessageHub.get_current_instance().update_info('iter', 0)
    boxes = [[8, 4, 40, 44], [60, 20, 150, 90]]
    resize._input_size = (192, 480)  # from 96 x 160: twice as high, three times as wide
    inputs, samples = prepared(preprocessor, [sample(boxes, (90, 150))])
    assert inputs.shape[2:] == (192, 480)
    mask = GaussianMask()(samples, feats(inputs))[0]
    scaled = torch.tensor(boxes, dtype=torch.float32) * torch.tensor([3, 2, 3, 2])
    torch.testing.assert_close(mask, gaussian_box_mask([scaled], (24, 60), (192, 480), image_sizes=[(180, 450)]))
    y, x = divmod(int(mask.argmax()), 60)
    assert abs((y + 0.5) * 8 - 110) < 8 or abs((y + 0.5) * 8 - 48) < 8
    assert abs((x + 0.5) * 8 - 315) < 8 or abs((x + 0.5) * 8 - 72) < 8


def test_follows_mosaic_affine_and_mixup():
    """Each object is a white rectangle on black; the mask must be where the pipeline has put the white."""
    import numpy as np
    from mmdet.datasets.transforms import MixUp, Mosaic, PackDetInputs, RandomAffine, Resize

    def image(seed: int) -> dict:
        rng = np.random.default_rng(seed)
        x, y = rng.integers(5, 60), rng.integers(5, 30)
        pixels = np.zeros((64, 112, 3), np.uint8)
        pixels[y : y + 24, x : x + 40] = 255
        box = HorizontalBoxes(torch.tensor([[x, y, x + 40, y + 24]], dtype=torch.float32))
        labels, ignored = np.zeros(1, np.int64), np.zeros(1, bool)
        return dict(
            img=pixels,
            img_shape=(64, 112),
            gt_bboxes=box,
            gt_bboxes_labels=labels,
            gt_ignore_flags=ignored,
            img_id=seed,
        )

    np.random.seed(3)
    scale = (160, 96)
    results = image(0) | dict(mix_results=[image(i) for i in (1, 2, 3)])
    results = Mosaic(img_scale=scale, pad_val=0.0)(results)
    results = RandomAffine(max_rotate_degree=0.0, max_shear_degree=0.0, border=(-80, -48), border_val=(0, 0, 0))(
        results
    )
    results = MixUp(img_scale=scale, pad_val=0.0)(results | dict(mix_results=[image(4)]))
    results = Resize(scale=scale, keep_ratio=True)(results)
    packed = PackDetInputs(meta_keys=('img_id', 'img_shape'))(results)
    data = DetDataPreprocessor(pad_size_divisor=32)(
        dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]), True
    )
    assert len(data['data_samples'][0].gt_instances) >= 2
    mask = GaussianMask(clip=True)(data['data_samples'], feats(data['inputs'], (4,)))[0][0, 0]
    white = torch.nn.functional.avg_pool2d(data['inputs'].mean(1), 4)[0]
    assert (mask > 0.8).sum() >= 2
    assert white[mask > 0.8].min() > 60  # mixup halves the brightness
    assert mask[white == 0].max() < 0.35  # only the rim of a box whose border is within a cell


def test_is_registered_and_empty_without_objects():
    mask = MODELS.build(dict(type='mmkd.GaussianMask', shape='binary'))
    inputs, samples = prepared(DetDataPreprocessor(), [sample([], (64, 96))])
    assert mask(samples, feats(inputs))[0].abs().sum() == 0


def test_refuses_samples_without_the_frame():
    with pytest.raises(ValueError, match='must carry one batch_input_shape'):
        GaussianMask()([sample([[0, 0, 9, 9]], (64, 96))], feats(torch.zeros(1, 3, 64, 96)))


def test_refuses_another_number_of_images():
    inputs, samples = prepared(DetDataPreprocessor(), [sample([], (64, 96))])
    with pytest.raises(ValueError, match=r'feats\[0\] holds 2 images, data_samples 1'):
        GaussianMask()(samples, feats(inputs.expand(2, -1, -1, -1)))


def test_a_box_marks_the_levels_that_are_there_for_its_size():
    """Strides 8, 16, 32: sides of 8, 40, 72, 100 and 300 px are 1, 5, 9, 12.5, 37.5 cells of 8 px and so on."""
    sides = [8, 40, 72, 100, 300]
    boxes = [[s, s, s + side, s + side] for s, side in zip((4, 20, 70, 150, 10), sides, strict=True)]
    inputs, (one,) = prepared(DetDataPreprocessor(pad_size_divisor=32), [sample(boxes, (320, 320))])
    levels = feats(inputs, (8, 16, 32))
    masks = GaussianMask(cells=(3, 8))([one], levels)
    marked = [[0, 1], [2, 3], [3, 4]]  # 8 px: the finest all the same; 300 px: 9.4 cells of the coarsest
    for mask, level, mine in zip(masks, levels, marked, strict=True):
        tensors = [torch.tensor([boxes[i] for i in mine], dtype=torch.float32)]
        expected = gaussian_box_mask(tensors, tuple(level.shape[-2:]), (320, 320), image_sizes=[(320, 320)])
        torch.testing.assert_close(mask, expected, rtol=0, atol=0)
    (alone,) = GaussianMask(cells=(3, 8))([one], levels[:1])  # the only level: finest and coarsest
    torch.testing.assert_close(alone, GaussianMask()([one], levels[:1])[0], rtol=0, atol=0)


@pytest.mark.parametrize('cells', [(3,), (8, 3), (-1, 3), (3, 3), 5])
def test_refuses_cells_that_are_no_range(cells):
    with pytest.raises(ValueError, match='cells must be two numbers'):
        GaussianMask(cells=cells)


def test_refuses_another_value_for_the_padding():
    with pytest.raises(ValueError, match='padding must be 0'):
        GaussianMask(padding=0.5)


def test_some_levels_of_a_pyramid_leave_other_sizes_to_the_rest():
    """mssd teaches all levels but the coarsest: large objects are that one's."""
    boxes = [[10, 10, 18, 18], [10, 10, 310, 310]]
    inputs, (one,) = prepared(DetDataPreprocessor(pad_size_divisor=32), [sample(boxes, (320, 320))])
    levels = feats(inputs, (8, 16, 32))
    mask = GaussianMask(cells=(3, 8))
    whole = mask([one], levels)
    for some in (levels[:2], levels[1:]):
        for got, level in zip(mask([one], some, levels), some, strict=True):
            torch.testing.assert_close(got, whole[[f is level for f in levels].index(True)], rtol=0, atol=0)
    assert mask([one], levels[:2])[1].max() > 0.5 and mask([one], levels[:2], levels)[1].max() == 0
