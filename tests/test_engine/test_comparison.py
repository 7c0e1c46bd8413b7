"""`tools/test.py`: the student beside the teacher and other checkpoints, costs, pictures."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from rich.console import Console

from mmkd.engine.comparison import COSTS, Comparison, parse_others, teacher_candidate
from mmkd.engine.detector_cost import gflops, milliseconds, parameter_count
from mmkd.engine.launch import load_config, prepare_test
from mmkd.engine.testing import TestOptions, candidates, test
from mmkd.models.algorithms.checkpoint_state import CheckpointMismatchError
from mmkd.testing.shrink import shrink
from mmkd.testing.toy_run import ToyRun, make_toy_run

ROOT = Path(__file__).resolve().parents[2]
# MMDetection 3.5 draws with numpy on torch tensors.
drawing = pytest.mark.filterwarnings('ignore:__array_wrap__ must accept:DeprecationWarning')


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    """A distillation and two checkpoints of its student: `one.pth`, `two.pth`."""
    run = make_toy_run(tmp_path_factory.mktemp('toy'), val=1)
    cfg = run.load()
    for seed, name in enumerate(('one', 'two')):
        torch.manual_seed(seed)
        torch.save(dict(state_dict=MODELS.build(cfg.model.architecture).state_dict()), run.root / f'{name}.pth')
    return run


def prepared(toy: ToyRun, work_dir: Path) -> tuple:
    """The student's configuration and that of its distillation; every box counts."""
    read = toy.load()
    read.model.architecture.test_cfg.score_thr = 0.0
    read.log_level = 'WARNING'
    options = dict(work_dir=str(work_dir), config_name='distill', launcher='none')
    return prepare_test(read, str(toy.root / 'one.pth'), **options), read


def written(folder: Path) -> dict:
    (file,) = folder.rglob('comparison.json')
    return json.loads(file.read_text())


@drawing
def test_all_are_scored_on_the_same_images_and_drawn(toy: ToyRun, tmp_path: Path, capsys) -> None:
    cfg, read = prepared(toy, tmp_path)
    cfg.test_evaluator.outfile_prefix = str(tmp_path / 'found')
    others = (f'same={toy.root}/one.pth', f'plain={toy.root}/two.pth')
    metrics = test(cfg, TestOptions(compare=others, cost=True, show_dir='pictures'), read)
    said = capsys.readouterr().out
    predictions = {path.name: path.read_text() for path in tmp_path.glob('found*.bbox.json')}
    assert set(predictions) == {f'found{name}.bbox.json' for name in ('', '_same', '_plain', '_teacher')}
    assert predictions['found.bbox.json'] == predictions['found_same.bbox.json'] != predictions['found_plain.bbox.json']
    found = written(tmp_path)
    assert list(found['scores']) == ['distilled', 'same', 'plain', 'teacher']
    assert found['scores']['distilled'] == found['scores']['same'] == metrics
    assert found['scores']['plain'] != metrics
    pictures = sorted(str(path.relative_to(path.parents[2])) for path in tmp_path.rglob('*.png'))
    assert len(pictures) == 4 and pictures[0].startswith('pictures/distilled/')
    assert 'distilled - teacher' in said.replace('\n', ' ') and 'images/s' in said
    student = MODELS.build(cfg.model)
    assert found['costs']['same']['parameters, M'] == pytest.approx(parameter_count(student) / 1e6)
    assert found['costs']['teacher']['parameters, M'] > found['costs']['same']['parameters, M']
    assert set(found['costs']['plain']) == set(COSTS)


@drawing
def test_pictures_of_kitti_are_drawn_too(tmp_path: Path) -> None:
    cfg = shrink(load_config(str(ROOT / 'configs/ssim/ssim_retinanet_r50_retinanet_r18_fpn_1x_kitti.py')), tmp_path)
    torch.save(dict(state_dict=MODELS.build(cfg.model.architecture).state_dict()), tmp_path / 's.pth')
    cfg.log_level = 'WARNING'
    plain = prepare_test(
        cfg, str(tmp_path / 's.pth'), work_dir=str(tmp_path / 'w'), config_name='kitti', launcher='none'
    )
    test(plain, TestOptions(show_dir='pictures'), cfg)
    assert [path.parent.name for path in (tmp_path / 'w').rglob('*.png')] == ['pictures']


def test_the_table_has_differences_only_where_both_have_a_score() -> None:
    scores = dict(
        distilled={'AP': 0.4, 'AP_large': -1.0},
        plain={'AP': 0.35, 'AP_large': -1.0},
        empty={},
        teacher={'AP': 0.5, 'AP_large': 0.1},
    )
    table = Comparison(scores, dict(teacher={'GFLOPs': 3.0}))
    assert table.rows() == [
        ['AP', '0.400', '0.350', '-', '0.500', '+0.050', '-', '-0.100'],
        ['AP_large', '-1.000', '-1.000', '-', '0.100', '-', '-', '-'],
        ['GFLOPs', '-', '-', '-', '3.00', '', '', ''],
    ]
    console = Console(width=140, record=True)
    table.print(console)
    text = console.export_text()
    assert 'empty: the evaluator gives no score' in text and 'One run of each' in text


def test_names_of_checkpoints() -> None:
    found = parse_others(['plain=a/b.pth', 'work_dirs/x/epoch_3.pth', 'w/lr=1/e.pth'], 'distilled')
    assert found == {'plain': 'a/b.pth', 'x/epoch_3': 'work_dirs/x/epoch_3.pth', 'lr=1/e': 'w/lr=1/e.pth'}


@pytest.mark.parametrize(
    'entries', [['a=1.pth', 'a=2.pth'], ['teacher=1.pth'], ['distilled=1.pth'], ['a='], ['=x.pth']]
)
def test_names_that_are_taken_or_empty_are_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match='with a name of its own'):
        parse_others(entries, 'distilled')


def test_nothing_to_compare_with_is_refused(toy: ToyRun, tmp_path: Path) -> None:
    cfg, _ = prepared(toy, tmp_path)
    with pytest.raises(ValueError, match='nothing to compare with.*the configuration names no teacher'):
        candidates(cfg, TestOptions(compare=()), cfg)


def test_a_teacher_of_other_classes_is_left_out_with_the_reason(toy: ToyRun, tmp_path: Path) -> None:
    cfg, read = prepared(toy, tmp_path)
    read.model.teacher = load_config(read.model.teacher)._cfg_dict.to_dict()
    assert teacher_candidate(read, cfg)[0].cfg.model.neck.out_channels == 24
    read.model.teacher['model']['bbox_head']['num_classes'] = 80
    assert teacher_candidate(read, cfg) == (None, 'the teacher predicts 80 classes, the test set has 4')


def test_another_networks_checkpoint_is_refused_before_anything_is_tested(toy: ToyRun, tmp_path: Path) -> None:
    cfg, read = prepared(toy, tmp_path / 'w')
    with pytest.raises(CheckpointMismatchError, match='teacher.pth'):
        test(cfg, TestOptions(compare=(f'wrong={toy.teacher_ckpt}',)), read)
    assert not (tmp_path / 'w').exists()


def test_cost_and_several_views_exclude_each_other(toy: ToyRun, tmp_path: Path) -> None:
    cfg, read = prepared(toy, tmp_path)
    with pytest.raises(ValueError, match='--cost measures the detector itself'):
        test(cfg, TestOptions(cost=True, tta=True), read)


def test_gflops_grow_with_the_area_and_a_time_needs_an_image(toy: ToyRun) -> None:
    model = MODELS.build(toy.load().model.architecture).eval()
    small, large = gflops(model, (64, 128)), gflops(model, (128, 128))
    assert large == pytest.approx(2 * small, rel=0.02)
    with pytest.raises(ValueError, match='At least one image'):
        milliseconds(model, [])


def test_a_teacher_that_numbers_the_classes_otherwise_is_not_scored(toy: ToyRun, tmp_path: Path) -> None:
    """Its AP would be near 0, and nothing would say why."""
    student, read = prepared(toy, tmp_path)
    candidate, reason = teacher_candidate(read, student)
    assert candidate is not None and reason == ''
    teacher = Config.fromfile(str(toy.teacher))
    classes = tuple(reversed(student.test_dataloader.dataset.metainfo.classes))
    teacher.train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
    teacher.dump(tmp_path / 'other_order.py')
    read.model.teacher = str(tmp_path / 'other_order.py')
    candidate, reason = teacher_candidate(read, student)
    assert candidate is None and reason == f'the teacher numbers the classes otherwise: {", ".join(classes)}'
