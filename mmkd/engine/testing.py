"""One test of a plain student: checkpoint checked, options of MMDetection's `tools/test.py` applied."""

import copy
from dataclasses import dataclass
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmkd import compat
from mmkd.engine.launch import build_runner
from mmkd.models.algorithms.teacher import load_strictly


@dataclass(frozen=True)
class TestOptions:
    """Options of a test.

    Args:
        out: `.pkl` file for the predictions.
        show: show the detections in a window.
        show_dir: folder, inside the work directory, for pictures of the detections.
        wait_time: seconds between pictures.
        tta: test-time augmentation.
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    out: str | None = None
    show: bool = False
    show_dir: str | None = None
    wait_time: float = 2
    tta: bool = False


def check_checkpoint(cfg: Config) -> None:
    """Refuse a checkpoint that is not the student's, instead of measuring an AP of 0.

    Raises:
        FileNotFoundError: the file does not exist.
        mmkd.compat.UnsafeCheckpointError: the file is damaged or wants to execute code.
        mmkd.models.algorithms.teacher.CheckpointMismatchError: the file is of another network.
    """
    path = compat.fetch_checkpoint(cfg.load_from)
    if path is None:
        return
    state = compat.load_checkpoint_file(str(path))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model = MODELS.build(copy.deepcopy(cfg.model))
    load_strictly(model, state, name=f'{cfg.model.type} to test from {path}')


def augment(cfg: Config) -> None:
    """Test-time augmentation as MMDetection's tool does it: the configured one, else a horizontal flip."""
    default = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    if 'tta_pipeline' not in cfg:
        meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        pack = [dict(type='PackDetInputs', meta_keys=meta)]
        augmented = dict(type='TestTimeAug', transforms=[flips, pack])
        cfg.tta_pipeline = [*copy.deepcopy(dataset.pipeline)[:-1], augmented]
    cfg.model = ConfigDict(**cfg.get('tta_model', default), module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def test(cfg: Config, options: TestOptions) -> dict[str, float]:
    """Test the checkpoint `cfg.load_from`.

    Args:
        cfg: the plain student's configuration, as `launch.prepare_test` makes it.
        options: options of the test.

    Returns:
        Metrics by name.

    Raises:
        ValueError: `out` is no `.pkl` file, or the configuration has no test set.
    """
    if options.out is not None and Path(options.out).suffix not in ('.pkl', '.pickle'):
        raise ValueError(f'--out must end in .pkl or .pickle, got {options.out}.')
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise ValueError('The configuration has no test_dataloader or test_evaluator.')
    compat.check_ops()
    check_checkpoint(cfg)
    if options.show or options.show_dir:
        trigger_visualization_hook(cfg, options)
    if options.tta:
        augment(cfg)
    runner = build_runner(cfg)
    if options.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=options.out))
    return runner.test()


test.__test__ = False
