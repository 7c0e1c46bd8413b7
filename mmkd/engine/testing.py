"""Tests of plain detectors: checkpoints checked, options of MMDetection's `tools/test.py` applied, scores compared."""

import copy
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.console import Console

from mmkd import compat, releases
from mmkd.engine.command_line import check_output
from mmkd.engine.comparison import COSTS, Candidate, Comparison, parse_others, teacher_candidate
from mmkd.engine.detector_cost import gflops, milliseconds, parameter_count
from mmkd.engine.launch import build_runner
from mmkd.engine.student_config import is_distillation
from mmkd.models.algorithms.checkpoint_state import load_strictly

COST_IMAGES = 10


@dataclass(frozen=True)
class TestOptions:
    """Options of a test.

    Args:
        out: `.pkl` file for the predictions.
        show: show the detections in a window.
        show_dir: folder, inside the work directory, for pictures of the detections.
        wait_time: seconds between pictures.
        tta: test-time augmentation.
        compare: further checkpoints of the student, `NAME=PATH` or `PATH`; with it the teacher is scored too.
        cost: measure parameters, GFLOPs and time of an image.
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    out: str | None = None
    show: bool = False
    show_dir: str | None = None
    wait_time: float = 2
    tta: bool = False
    compare: tuple[str, ...] | None = None
    cost: bool = False


def check_checkpoint(cfg: Config, *, strict: bool = True) -> None:
    """Refuse a checkpoint that is not the detector's, instead of measuring an AP of 0.

    Raises:
        FileNotFoundError: the file does not exist.
        mmkd.compat.UnsafeCheckpointError: the file is damaged or wants to execute code.
        mmkd.models.algorithms.checkpoint_state.CheckpointMismatchError: the file is of another network.
    """
    path = compat.fetch_checkpoint(cfg.load_from)
    if path is None:
        return
    state = compat.load_checkpoint_file(str(path))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model = MODELS.build(copy.deepcopy(cfg.model))
    load_strictly(model, state, name=f'{cfg.model.type} to test from {path}', strict=strict)


def draw(cfg: Config, options: TestOptions) -> None:
    """Turn MMDetection's visualisation hook on, also where the configuration has none."""
    cfg.setdefault('default_hooks', {})
    if not cfg.default_hooks.get('visualization'):
        cfg.default_hooks.visualization = dict(type='DetVisualizationHook')
    if not cfg.get('visualizer'):
        cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
    trigger_visualization_hook(cfg, options)


def _sets_inside(dataset: ConfigDict) -> list[ConfigDict]:
    """The data sets that read files, without their wrappers."""
    inner = [dataset['dataset']] if 'dataset' in dataset else list(dataset.get('datasets') or ())
    return [one for child in inner for one in _sets_inside(child)] if inner else [dataset]


def augment(cfg: Config) -> None:
    """Test-time augmentation as MMDetection's tool does it: the configured one, else a horizontal flip."""
    default = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    sets = _sets_inside(cfg.test_dataloader.dataset)
    if 'tta_pipeline' not in cfg:
        meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        pack = [dict(type='PackDetInputs', meta_keys=meta)]
        augmented = dict(type='TestTimeAug', transforms=[flips, pack])
        cfg.tta_pipeline = [*copy.deepcopy(sets[0].pipeline)[:-1], augmented]
    cfg.model = ConfigDict(**cfg.get('tta_model', default), module=cfg.model)
    for one in sets:
        one.pipeline = copy.deepcopy(cfg.tta_pipeline)


def _refuse(cfg: Config, options: TestOptions) -> None:
    if options.out is not None and Path(options.out).suffix not in ('.pkl', '.pickle'):
        raise ValueError(f'--out must end in .pkl or .pickle, got {options.out}.')
    if options.out is not None:
        check_output('--out', Path(options.out))
    check_output('--work-dir', Path(cfg.work_dir), folder=True)
    if options.tta and options.cost:
        raise ValueError('--cost measures the detector itself, --tta several views of an image: give one of them.')
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise ValueError('The configuration has no test_dataloader or test_evaluator.')


def measure(runner: Runner) -> dict[str, float]:
    """Parameters, GFLOPs and time of the runner's detector on the first test images, one at a time.

    Returns:
        Entries of `comparison.COSTS`; GFLOPs are those of the first image as it is padded.
    """
    model = getattr(runner.model, 'module', runner.model).eval()
    dataset = runner.test_dataloader.dataset
    batches = [pseudo_collate([dataset[index]]) for index in range(min(COST_IMAGES, len(dataset)))]
    shape = tuple(model.data_preprocessor(copy.deepcopy(batches[0]))['inputs'].shape[-2:])
    time = milliseconds(model, batches)
    values = (parameter_count(model) / 1e6, gflops(model, shape), time, 1000 / time)
    return dict(zip(COSTS, values, strict=True))


def _write_apart(cfg: Config, name: str) -> None:
    """Predictions of a further detector go beside those of the first one, not over them."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list | tuple) else [cfg.test_evaluator]
    for evaluator in evaluators:
        for metric in (evaluator, *evaluator.get('metrics', ())):
            if metric.get('outfile_prefix'):
                metric.outfile_prefix = f'{metric.outfile_prefix}_{name}'


def _build_apart(cfg: Config, name: str) -> Runner:
    """A runner whose configuration is written into its log folder.

    MMEngine writes it into the work directory, by the name that it was read from: over the one that the training has
    left there, from which it may be resumed. Without a name it is that of the log folder.
    """
    cfg.__dict__['_filename'] = None
    runner = build_runner(cfg)
    if is_main_process():
        with suppress(FileNotFoundError):
            written = Path(runner.work_dir) / f'{runner.timestamp}.py'
            written.replace(written.with_suffix('') / f'test_{name}.py')
    return runner


def _score(candidate: Candidate, options: TestOptions, *, first: bool) -> tuple[Runner, dict[str, float]]:
    """Test one detector; the runner still holds it."""
    cfg, name = candidate.cfg, candidate.name.replace('/', '_')
    if options.show or options.show_dir:
        folder = options.show_dir
        if folder and options.compare is not None:
            folder = str(Path(folder) / name)
        draw(cfg, replace(options, show_dir=folder))
    if options.tta:
        augment(cfg)
    if not first:
        _write_apart(cfg, name)
    if options.compare is not None:
        cfg.experiment_name = f'{cfg.get("experiment_name") or "test"}_{name}'
    runner = _build_apart(cfg, name)
    if first and options.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=options.out))
    found = runner.test()
    return runner, {key: float(value) for key, value in found.items() if isinstance(value, Real)}


def candidates(cfg: Config, options: TestOptions, distillation: Config | None) -> list[Candidate]:
    """The detector to test and, where a comparison is wanted, the others and the teacher.

    Raises:
        ValueError: nothing to compare with, or names that are taken.
    """
    first = 'distilled' if distillation is not None and is_distillation(distillation) else 'student'
    found = [Candidate(first, cfg)]
    if options.compare is None:
        return found
    for name, checkpoint in parse_others(options.compare, first).items():
        other = copy.deepcopy(cfg)
        other.load_from = checkpoint
        found.append(Candidate(name, other))
    teacher, reason = teacher_candidate(distillation, cfg) if distillation is not None else (None, 'none was given')
    if teacher is not None:
        found.append(teacher)
    elif len(found) == 1:
        raise ValueError(f'--compare has nothing to compare with: no other checkpoint is given, and {reason}.')
    else:
        print_log(f'The teacher is not scored: {reason}.', logger='current')
    return found


def test(cfg: Config, options: TestOptions, distillation: Config | None = None) -> dict[str, float]:
    """Test the checkpoint `cfg.load_from`, alone or beside others.

    Args:
        cfg: the plain student's configuration, as `launch.prepare_test` makes it.
        options: options of the test.
        distillation: the configuration as it was read, which may name a teacher; needed for `options.compare`.

    Returns:
        Metrics of that checkpoint by name.

    Raises:
        FileNotFoundError: a checkpoint does not exist.
        PermissionError: `out` or the work directory cannot be written.
        ValueError: `out` is no `.pkl` file, a file is in the place of a folder, the configuration has no test set, or
            there is nothing to compare with.
        mmkd.models.algorithms.checkpoint_state.CheckpointMismatchError: a checkpoint is of another network.
    """
    _refuse(cfg, options)
    releases.check_ops()
    wanted = candidates(cfg, options, distillation)
    for candidate in wanted:
        check_checkpoint(candidate.cfg, strict=candidate.strict)
    table, log_dir = Comparison(), None
    for index, candidate in enumerate(wanted):
        runner, table.scores[candidate.name] = _score(candidate, options, first=index == 0)
        if options.cost and is_main_process():
            table.costs[candidate.name] = measure(runner)
        log_dir = log_dir or Path(runner._log_dir)
    if options.cost or options.compare is not None:
        table.print(Console(width=None if sys.stdout.isatty() else 140))
        table.write(log_dir / 'comparison.json')
    return table.scores[wanted[0].name]


test.__test__ = False
