"""Pictures of a distillation: they show what the losses compare, and leave no trace in what they look at."""

import gc
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend
from torch import nn

from mmkd.engine.distillation_pictures import PictureOptions, as_pixels, draw_subject
from mmkd.engine.inspection import inspect_losses
from mmkd.engine.subjects import CocoTruth, Subject, image_pipeline, load_subject, preprocess, subjects_of
from mmkd.testing.detection_data import detection_data
from mmkd.testing.methods import distilled_model, needs_teacher
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.toy_detectors import toy_detector

CLASSES = ('circle', 'square', 'triangle', 'cross')


def built(method: str, family: str = 'retinanet', **options: object) -> nn.Module:
    """The algorithm of a method around a small pair, with random weights; options of the teacher."""
    teacher = None
    if needs_teacher(method):
        network = MODELS.build(toy_detector(family, width=8, channels=24, convs=1))
        teacher = dict(teacher=dict(config=network, **options) if options else network)
    student = toy_detector(family, width=8, channels=16, convs=1)
    return MODELS.build(distilled_model(student, method, teacher))


@pytest.fixture(scope='module')
def cfg(toy: Path) -> Config:
    schedule = Schedule(epochs=1, scale=(160, 134), batch=2)  # every level has several cells
    return training_config(toy_detector('retinanet', width=8, channels=16, convs=1), detection_data(toy), schedule, 0)


@pytest.fixture(scope='module')
def subject(cfg: Config) -> Subject:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        return subjects_of(dataset, [1], Compose(image_pipeline(cfg)))[0]


def maps_of(value: object) -> list[torch.Tensor]:
    """First map of each level."""
    levels = value if isinstance(value, list | tuple) else [value]
    return [level[0] if isinstance(level, list | tuple) else level for level in levels]


def in_training(model: nn.Module, inputs: torch.Tensor, samples: list) -> dict[str, dict]:
    """What each loss is given by the algorithm's own training step, in eval mode."""
    given: dict[str, dict] = {}
    for name, loss in model.distiller.distill_losses.items():

        def note(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            given[name] = kwargs

        loss.register_forward_pre_hook(note, with_kwargs=True)
    model.eval()
    model.distiller.schedules.clear()
    with torch.no_grad():
        model(inputs, samples, mode='loss')
    return given


@pytest.mark.parametrize('method', ['ssim', 'mssd', 'ikd', 'mkd', 'frskd_dense'])
def test_shown_is_what_the_training_step_compares(method: str, subject: Subject):
    model = built(method)
    inputs, samples, _ = preprocess(model, subject, subject.truth)
    found = inspect_losses(model, inputs, samples)
    given = in_training(model, inputs, samples)
    assert set(found.losses) == set(given)
    for name, levels in found.losses.items():
        for key, attribute in (('preds_S', 'student'), ('preds_T', 'teacher')):
            wanted = maps_of(given[name][key])
            assert len(levels) == len(wanted)
            for level, map_ in zip(levels, wanted, strict=True):
                torch.testing.assert_close(getattr(level, attribute), map_[0], rtol=0, atol=0)
        if 'mask' in given[name]:
            assert all(torch.equal(one.mask, m[0, 0]) for one, m in zip(levels, given[name]['mask'], strict=True))


def test_levels_are_called_by_their_stride(subject: Subject):
    model = built('mssd')
    inputs, samples, _ = preprocess(model, subject, subject.truth)
    found = inspect_losses(model, inputs, samples)
    names = ['p3', 'p4', 'p5', 'p6', 'p7']
    assert list(found.records['student neck']) == list(found.masks['objects']) == names
    pairs = [one.level for one in found.losses['loss_mssd']]
    assert pairs == ['p3_from_p4', 'p4_from_p5', 'p5_from_p6', 'p6_from_p7']


def test_gates_are_those_of_the_spatial_attention(subject: Subject):
    model = built('ikd')
    inputs, samples, _ = preprocess(model, subject, subject.truth)
    (gates,) = inspect_losses(model, inputs, samples).gates.values()
    assert list(gates) == ['p3', 'p4', 'p5', 'p6', 'p7']
    model.eval()
    resample, attention = model.distiller.connectors['resample']
    with torch.no_grad():
        level = model.architecture.extract_feat(inputs)[0]
        expected = attention.levels[0].gate(resample.levels[0](level))[0, 0]
    torch.testing.assert_close(gates['p3'], expected)


def test_losses_on_proposals_are_left_out_with_a_reason(subject: Subject):
    model = built('mkd_roi', 'faster-rcnn')
    inputs, samples, _ = preprocess(model, subject, subject.truth)
    found = inspect_losses(model, inputs, samples)
    assert found.skipped == {'loss_mkd_soft': 'roi_head.bbox_head gives no feature map'}
    assert set(found.losses) == {'loss_mkd_relation', 'loss_mkd_attention', 'loss_mkd_guide', 'loss_mkd_explore'}


def hooks_of(model: nn.Module) -> int:
    parts = [model, model.architecture, *([model.teacher] if hasattr(model, '_teacher') else [])]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for part in parts for m in part.modules())


@pytest.mark.parametrize('method', ['ikd', 'mssd', 'frskd_dense'])
def test_drawing_leaves_no_trace(method: str, subject: Subject):
    model = built(method).train()
    model.architecture.backbone.layer1.eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in nn.Module.state_dict(model.architecture).items()}
    apart = {name: module.saved_state() for name, module in model.apart_modules().items()}
    hooks, random = hooks_of(model), torch.get_rng_state()
    draw_subject(model, subject, PictureOptions())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in nn.Module.state_dict(model.architecture).items())
    for name, module in model.apart_modules().items():
        assert all(torch.equal(value, apart[name][key]) for key, value in module.saved_state().items())
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), random)
    recorders = [r for side in (True, False) for r in model.distiller.recorders(side).recorders.values()]
    assert not any(recorder.data_buffer for recorder in recorders)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_each_method_shows_its_own(subject: Subject):
    options = PictureOptions(levels=['p3', 'p4'], classes=CLASSES)
    figures = draw_subject(built('ssim'), subject, options)
    assert list(figures) == ['loss_ssim', 'attention', 'detections']
    assert titles(figures['loss_ssim']) == ['image', 'student', 'teacher', 'student - teacher', 'SSIM map']
    assert titles(figures['detections']) == ['ground truth', 'student', 'teacher']
    figures = draw_subject(built('mssd'), subject, options)
    shown = ['image', 'student', 'teaching level', 'student - teaching level', 'loss of each cell', 'mask']
    assert titles(figures['loss_mssd']) == shown
    assert titles(figures['attention']) == ['image', 'student neck', "mask 'objects'"]
    assert titles(figures['detections']) == ['ground truth', 'student']


def test_without_annotation_the_teachers_detections_mark_the_objects(cfg: Config, subject: Subject):
    unknown = load_subject(Compose(image_pipeline(cfg)), subject.metainfo['img_path'], None)
    figures = draw_subject(built('ssim'), unknown, PictureOptions(threshold=0.0, classes=CLASSES))
    assert 'detections of the teacher (no annotation)' in figures['loss_ssim'].get_suptitle()
    assert len(figures['loss_ssim'].axes[0].patches) > 0
    assert titles(figures['detections']) == ['student', 'teacher']
    nothing = draw_subject(built('mssd'), unknown, PictureOptions(threshold=1.0))
    mask = nothing['attention'].axes[2].images[-1].get_array()
    assert mask.max() == 0, 'no object, no weight'


def test_objects_follow_the_resized_image(cfg: Config, subject: Subject):
    steps = image_pipeline(cfg)
    for step in steps:
        if step['type'] == 'Resize':
            step['scale'] = (192, 160)
    twice = load_subject(Compose(steps), subject.metainfo['img_path'], subject.truth)
    inputs, (sample,), frame = preprocess(built('mssd'), twice, twice.truth)
    assert tuple(inputs.shape[-2:]) == (160, 192)
    np.testing.assert_allclose(sample.gt_instances.bboxes.numpy(), 2 * subject.truth.corners)
    np.testing.assert_allclose(frame.boxes, 2 * subject.truth.corners)
    grey = frame.image[::2, ::2].mean() - subject.picture.mean()
    assert abs(grey) < 2, 'the picture is the image, in RGB'


def test_levels_that_are_not_there_are_refused(subject: Subject):
    with pytest.raises(ValueError, match="there is no 'p9', only p3, p4, p5, p6, p7; nearest: "):
        draw_subject(built('ssim'), subject, PictureOptions(levels=['p9']))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="got 'loses'; nearest: losses"):
        PictureOptions(kinds=('loses',))


def test_pixels_are_the_picture(subject: Subject):
    figures = draw_subject(built('mssd'), subject, PictureOptions(kinds=('losses',)))
    pixels = as_pixels(figures['loss_mssd'], 50)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert pixels.std() > 10


def test_coco_truth_is_found_by_file_name(toy: Path):
    truth = CocoTruth(toy / 'annotations' / 'val.json', CLASSES)
    boxes = truth.of(toy / 'images' / 'val_00002.png')
    assert len(boxes.corners) == len(boxes.labels) > 0
    assert (boxes.corners[:, 2:] > boxes.corners[:, :2]).all()
    assert truth.of('elsewhere/photo.png') is None
    with pytest.raises(ValueError, match='none of the classes dog'):
        CocoTruth(toy / 'annotations' / 'val.json', ('dog',))
    with pytest.raises(ValueError, match='no COCO annotation file'):
        CocoTruth(toy / 'toy_data.json', CLASSES)


# ---- the hook -------------------------------------------------------------------------------------------------------


@VISBACKENDS.register_module()
class KeptPictures(BaseVisBackend):
    """Stands for TensorBoard and WandB: MMEngine gives them the same calls."""

    kept: list[tuple] = []

    def _init_env(self) -> None: ...

    @property
    def experiment(self) -> 'KeptPictures':
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: object) -> None:
        self.kept.append((name, image.ndim, image.dtype, step))


def hooked(cfg: Config, **arguments: object) -> Config:
    cfg.custom_hooks = [dict(type='mmkd.DistillationPictureHook', **arguments)]
    return cfg


def test_training_with_pictures_gives_the_same_weights(
    distill_config: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(KeptPictures, 'kept', [])
    with_pictures = hooked(distill_config(), images=[0, 2])
    with_pictures.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='KeptPictures', save_dir='.')]
    states = []
    for name, cfg in (('plain', distill_config()), ('pictures', with_pictures)):
        runner = run(cfg, tmp_path / name)
        connectors = {f'apart.{k}': v for k, v in runner.model.distiller.saved_state().items()}
        states.append({**runner.model.state_dict(), **connectors})
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    pictures = {path.name: path for path in (tmp_path / 'pictures').rglob('vis_image/*.png')}
    kinds = ('loss_ssim', 'attention', 'detections')
    assert set(pictures) == {f'val_0000{i}_{kind}_{step}.png' for i in (1, 3) for kind in kinds for step in (1, 2)}
    calls = {(f'{name}_{step}.png', ndim, str(dtype)) for name, ndim, dtype, step in KeptPictures.kept}
    assert calls == {(name, 3, 'uint8') for name in pictures}, 'every backend of the visualiser gets them'
    before, after = (matplotlib.image.imread(pictures[f'val_00001_loss_ssim_{step}.png']) for step in (1, 2))
    assert not np.array_equal(before, after), 'the second picture is that of the second epoch'


def test_pictures_of_iterations_do_not_fill_the_memory(
    distill_config: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mmkd.engine.hooks.distillation_picture_hook import DistillationPictureHook

    counts = []
    draw = DistillationPictureHook._draw

    def counted(self: DistillationPictureHook, runner: object, step: int) -> None:
        draw(self, runner, step)
        gc.collect()
        alive = gc.get_objects()
        maps = sum(issubclass(type(o), torch.Tensor) and o.ndim > 1 for o in alive)  # not the guard's few losses
        counts.append((step, sum(issubclass(type(o), Figure) for o in alive), maps))

    monkeypatch.setattr(DistillationPictureHook, '_draw', counted)
    cfg = hooked(distill_config(epochs=1), interval=1, by_epoch=False, kinds=['losses'], levels=['p3'])
    run(cfg, tmp_path / 'run')
    assert [step for step, _, _ in counts] == [1, 2, 3, 4]
    assert counts[-1][1] == counts[0][1], "MMEngine's visualiser keeps figures of its own, the hook none"
    assert counts[-1][2] <= counts[1][2], 'maps that stay would grow in number'


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(interval=0), 'interval must be at least 1'),
        (dict(images=[]), 'at least one validation image'),
        (dict(kinds=['maps']), 'kinds must be some of'),
        (dict(images=[99]), 'has the images 0 to 3, not 99'),
        (dict(images=[1, 1]), 'Two images are called'),
        (dict(levels=['p3', 'p33']), "there is no 'p33', only p3, p4, p5, p6, p7; nearest: p3"),
    ],
)
def test_hook_refuses(arguments: dict, says: str, distill_config: Callable, run: Callable, tmp_path: Path):
    with pytest.raises(ValueError, match=says):
        run(hooked(distill_config(), **arguments), tmp_path / 'run')


def test_hook_refuses_a_plain_training(plain_config: Callable, run: Callable, tmp_path: Path):
    with pytest.raises(ValueError, match='this model has no such distiller'):
        run(hooked(plain_config()), tmp_path / 'run')


def test_a_teacher_in_half_precision_is_shown_as_the_loss_reads_it(subject: Subject) -> None:
    """MKD's connectors and masks have weights in float32."""
    model = built('mkd', precision='bf16')
    inputs, samples, _ = preprocess(model, subject, subject.truth)
    found = inspect_losses(model, inputs, samples)
    assert found.losses and all(bool(torch.isfinite(one.teacher).all()) for one in next(iter(found.losses.values())))


@pytest.mark.parametrize('method', ['ssim', 'mssd'])
def test_the_teachers_images_go_where_the_model_goes(method: str) -> None:
    """MMEngine tells preprocessors their device by walking the children, and the teacher is none."""
    model = built(method).to('meta')
    for network in (model.architecture, getattr(model, 'teacher', model.architecture)):
        assert network.data_preprocessor.device.type == 'meta'


def test_a_loss_without_a_wanted_level_is_left_out(subject: Subject) -> None:
    """mssd's last pair is `p6_from_p7`: p7 is a level, but teaches only."""
    assert set(draw_subject(built('mssd'), subject, PictureOptions(levels=['p7']))) == {'attention', 'detections'}


def test_in_a_loop_of_iterations_an_epoch_is_one_pass(
    distill_config: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mmkd.engine.hooks.distillation_picture_hook import DistillationPictureHook

    drawn = []
    monkeypatch.setattr(DistillationPictureHook, '_draw', lambda self, runner, step: drawn.append(step))
    cfg = hooked(distill_config(epochs=1), interval=2)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=17, val_interval=99)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.train_dataloader.batch_sampler = None
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=99, by_epoch=False)
    run(cfg, tmp_path / 'run')
    assert drawn == [8, 16], 'four steps a pass'
