"""The cost benchmark measures what it says; no test looks at how long anything took."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm, Workbench, made_batch, stock_distiller
from mmkd.engine.cost_profile import work
from mmkd.engine.cost_rounds import Times, ratio, spread, summarise, take_turns
from mmkd.engine.launch import load_config
from mmkd.testing.benchmark_cost import (
    benchmark,
    builders,
    check,
    gradients,
    main,
    parse_arguments,
    peak_memory,
    rehearse,
    without,
)
from mmkd.testing.cost_report import cost_figure, gpu_table
from mmkd.testing.cost_report import main as write_report
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.worker import hardware_class

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(width=8, channels=16, convs=1)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small pair with SSIM, as a file."""
    method = Config.fromfile(str(ROOT / 'configs/_base_/methods/ssim.py')).distiller
    model = dict(
        type='mmkd.TeacherStudentDistill',
        architecture=toy_detector('retinanet', **SMALL),
        teacher=toy_detector('retinanet', **dict(SMALL, width=16)),
        teacher_ckpt='nowhere.pth',
        distiller=method,
    )
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    path = tmp_path / 'ssim_toy.py'
    Config(dict(default_scope='mmdet', model=model, optim_wrapper=wrapper)).dump(str(path))
    return path


@pytest.fixture
def bench(config: Path) -> Workbench:
    return Workbench(load_config(str(config)), (128, 160), 2)


def test_every_arm_takes_steps_and_the_students_are_equal(bench: Workbench):
    arms = [bench.plain(), bench.teacher(), bench.distilled(), *(bench.mmrazor(kind) for kind in MMRAZOR)]
    students = [getattr(arm.model, 'architecture', arm.model) for arm in arms if arm.name != TEACHER]
    first = students[0].state_dict()
    assert all(torch.equal(first[k], v) for s in students[1:] for k, v in s.state_dict().items())
    teachers = [arms[1].model, arms[2].model.teacher, arms[3].model.teacher, arms[4].model.teacher]
    assert all(torch.equal(teachers[0].backbone.conv1.weight, t.backbone.conv1.weight) for t in teachers)
    times = take_turns(arms, 2, 1, 'cpu')
    assert [len(one.busy) for one in times.values()] == [2] * 5
    found = summarise(times, 2)
    assert set(found['ratios']) == {DISTILLED}
    assert set(found['ratios'][DISTILLED]) == {'over_plain', 'over_floor', *(f'over_{kind}' for kind in MMRAZOR)}
    assert set(found['arms'][DISTILLED]['parts']) == {'teacher', 'distill', 'student'}
    for arm in arms:
        if arm.name != TEACHER:
            before = [p.clone() for p in arm.model.parameters() if p.requires_grad]
            arm.step()
            after = [p for p in arm.model.parameters() if p.requires_grad]
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_our_losses_equal_those_of_mmrazor(bench: Workbench):
    """Or else the comparison would be of different work."""
    ours, theirs = bench.distilled().model, bench.mmrazor('FpnTeacherDistill').model
    totals = []
    for model in (ours, theirs):
        torch.manual_seed(2)
        losses = model(bench.inputs, bench.samples, mode='loss')
        values = [v for k, v in losses.items() if k.startswith('distill')]
        totals.append(sum(float(part.detach()) for v in values for part in (v if isinstance(v, list | tuple) else [v])))
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    assert totals[0] > 0


def test_a_step_computes_what_mmrazors_cheaper_algorithm_does_and_no_more(bench: Workbench):
    """Times differ from run to run, what is computed does not."""
    arms = [bench.plain(), bench.teacher(), bench.distilled(), *(bench.mmrazor(kind) for kind in MMRAZOR)]
    for arm in arms:
        arm.step()
    plain, teacher, ours, whole, features = (work(arm) for arm in arms)
    assert ours['gflops'] == features['gflops'] < whole['gflops']
    assert ours['operators'] <= features['operators']
    assert plain['gflops'] + teacher['gflops'] < ours['gflops'] < 1.03 * (plain['gflops'] + teacher['gflops'])


def test_a_teacher_with_options_is_an_arm_of_its_own(bench: Workbench):
    arm = bench.distilled(dict(fold_bn=True, channels_last=True))
    assert arm.name == 'distilled (channels_last, fold_bn)'
    arm.step()
    assert arm.model._teacher.settled
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in arm.model.teacher.backbone.modules())


def test_schedules_do_not_switch_the_losses_off(config: Path):
    cfg = load_config(str(config))
    cfg.model.distiller.schedules = dict(loss_ssim=dict(begin=5))
    arm = Workbench(cfg, (128, 160), 1).distilled()
    arm.step()
    assert arm.clock.finished()[-1]['teacher'] > 0


def test_self_distillation_has_the_plain_student_for_its_floor():
    cfg = load_config(str(ROOT / 'configs/mssd/mssd_retinanet_r50_fpn_1x_coco.py'))
    cfg.model.architecture = toy_detector('retinanet', **SMALL)
    bench = Workbench(cfg, (128, 160), 1)
    args = parse_arguments(['x.py'])
    assert list(builders(bench, args)) == [PLAIN, DISTILLED]
    found = summarise(take_turns([bench.plain(), bench.distilled()], 1, 1, 'cpu'), 1)
    ratios = found['ratios'][DISTILLED]
    assert ratios['over_plain'] == ratios['over_floor']


def test_made_boxes_lie_inside_the_image_and_are_of_many_sizes():
    _, samples = made_batch(2, (96, 160), 3, 'cpu')
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        assert (boxes >= 0).all() and (boxes[:, 2] <= 160).all() and (boxes[:, 3] <= 96).all()
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        assert (sides > 1).all() and sides.max() > 5 * sides.min()


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round():
    found = ratio([3.0, 8.0, 5.0], [1.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert found == dict(median=1.5, low=1.0, high=2.0)


@pytest.mark.parametrize(('rounds', 'low', 'high'), [(1, 1, 1), (7, 1, 7), (8, 1, 8), (9, 2, 8), (21, 6, 16)])
def test_interval_of_the_median_by_ranks(rounds, low, high):
    values = [float((7 * i) % rounds) + 1 for i in range(rounds)] if rounds % 7 else [*map(float, range(rounds, 0, -1))]
    found = spread(values)
    assert (found['low'], found['median'], found['high']) == (low, (rounds + 1) / 2, high)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [one['low'] <= 0 <= one['high'] for one in map(spread, rng.normal(size=(2000, 15)).tolist())]
    assert 0.95 < np.mean(held) < 0.98  # 0.965 by the binomial distribution


def test_floor_is_student_and_teacher():
    times = {PLAIN: Times([1.0], [1.0]), TEACHER: Times([0.5], [0.5]), DISTILLED: Times([3.0], [3.0])}
    times[DISTILLED].parts = dict(step=[3.0], teacher=[0.5], distill=[1.0])
    found = summarise(times, 4)
    assert found['ratios'][DISTILLED]['over_floor']['median'] == 2.0
    assert found['arms'][DISTILLED]['parts'] == dict(teacher=0.5, distill=1.0, student=1.5)
    assert found['arms'][PLAIN]['images_a_second'] == 4


def test_every_arm_goes_first_in_some_round():
    order: list[str] = []
    arms = [Arm(name, lambda name=name: order.append(name), torch.nn.Identity()) for name in 'abc']
    take_turns(arms, 3, 1, 'cpu')
    rounds = [''.join(order[i : i + 3]) for i in range(0, 12, 3)]
    assert {r[0] for r in rounds[1:]} == set('abc')
    assert all(sorted(r) == list('abc') for r in rounds)


def test_warm_up_does_not_count():
    calls = []
    times = take_turns([Arm('a', lambda: calls.append(len(calls)), torch.nn.Identity())], 1, 2, 'cpu')
    assert len(calls) == 3 and len(times['a'].wall) == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('entry', 'says'),
    [
        (dict(mask='objects'), 'uses mask'),
        (dict(recorder='labels'), 'uses labels'),
        (dict(recorder='neck', from_student=True, connector='adapt'), 'uses connector'),
        (dict(recorder='neck', from_student=True, strides=(8,)), 'uses strides'),
    ],
)
def test_what_mmrazor_cannot_say_is_refused(entry: dict, says: str):
    with pytest.raises(ValueError, match=says):
        stock_distiller(dict(loss_forward_mappings=dict(loss=dict(preds_S=entry))))


def test_refuses_before_anything_is_built(config: Path, tmp_path: Path):
    (tmp_path / 'old.json').write_text('{}')
    with pytest.raises(FileExistsError, match='old.json exists'):
        benchmark(parse_arguments([str(config), '--json', str(tmp_path / 'old.json')]))
    own = load_config(str(ROOT / 'configs/mssd/mssd_retinanet_r50_fpn_1x_coco.py'))
    with pytest.raises(ValueError, match='has no teacher'):
        check(parse_arguments(['x.py', '--against', 'mmrazor']), own)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='torch sees no GPU'):
            check(parse_arguments(['x.py', '--device', 'cuda']), own)
    with pytest.raises(ValueError, match='must be a distillation'):
        Workbench(load_config(str(ROOT / 'configs/baselines/retinanet_r18_fpn_1x_kitti.py')), (64, 64), 1)


@pytest.mark.parametrize('words', [['--teacher', 'int8'], ['--rounds', '0'], ['--batch', 'two'], ['--shape', '0', '9']])
def test_refuses_bad_numbers_and_words(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse_arguments(['x.py', *words])
    assert f'got {words[1]}' in capsys.readouterr().err.replace(repr(words[1]), words[1])


def test_peak_memory_is_that_of_the_steps_alone(config: Path, monkeypatch: pytest.MonkeyPatch):
    class Held:
        def step(self) -> None:
            torch.ones(64 * 2**20).sum()  # 256 MiB

    assert 240 <= peak_memory(Held, 'cpu') / 2**20 < 300
    blocks = [torch.ones(5 * 2**18) for _ in range(60)]  # 300 MiB in blocks that the C library keeps when freed
    behind = torch.ones(2**19)
    del blocks
    assert 240 <= peak_memory(Held, 'cpu') / 2**20 < 300
    del behind
    steps = []

    def spy(bench: Workbench, args: argparse.Namespace) -> dict:
        return {PLAIN: lambda: Arm(PLAIN, lambda: steps.append(bench.inputs.shape), bench.plain().model)}

    monkeypatch.setattr('mmkd.testing.benchmark_cost.builders', spy)
    args = parse_arguments([str(config), '--shape', '64', '300', '--memory-of', PLAIN])
    rehearse(load_config(str(config)), args)
    assert steps == [(1, 3, 64, 128)]


def test_peak_memory_of_a_gpu_is_growth_too(monkeypatch: pytest.MonkeyPatch):
    """What the process holds already, such as the batch, is no memory of the arm."""
    steps = []
    monkeypatch.setattr('torch.cuda.memory_allocated', lambda: 100 if not steps else 700)
    monkeypatch.setattr('torch.cuda.reset_peak_memory_stats', lambda: None)
    monkeypatch.setattr('torch.cuda.max_memory_allocated', lambda: 100 + 300 * len(steps))
    arm = Arm(PLAIN, lambda: steps.append(1), torch.nn.Identity())
    assert peak_memory(lambda: arm, 'cuda') == 900


def test_the_hardware_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda device=None: f'Pretended GPU {device}')
    assert 'CPU cores' in hardware_class('cpu')
    assert hardware_class('cuda:1') == 'Pretended GPU cuda:1'


# ---- several GPUs ---------------------------------------------------------------------------------------------------


def test_connectors_are_among_the_gradients(config: Path):
    cfg = load_config(str(config))
    cfg.model.distiller = Config.fromfile(str(ROOT / 'configs/_base_/methods/ssim_adapt.py')).distiller
    cfg.model.teacher.neck.out_channels = 24
    cfg.model.teacher.bbox_head.update(in_channels=24)
    bench = Workbench(cfg, (64, 96), 1)
    model, student = bench.distilled().model, gradients(bench.plain().model)
    assert student == sum(4 * p.numel() for p in model.architecture.parameters() if p.requires_grad) / 2**20
    assert gradients(model) - student == pytest.approx(4 * 5 * (16 * 24 + 24) / 2**20)


def test_the_table_of_gpus_says_whose_gradients_an_old_file_has():
    def row(**gradients: float) -> str:
        setting = dict(weights_MiB={TEACHER: 139.0}, gradients_MiB=64.0, **gradients)
        return gpu_table([dict(config='x.py', settings=[setting])]).splitlines()[2]

    assert row(distilled_gradients_MiB=128.0) == '| `x` | 139 | 128 | 224 | 252 |'
    assert row() == "| `x` | 139 | 64 (the student's alone) | 112 | 126 |"


# ---- the whole way --------------------------------------------------------------------------------------------------


def test_from_the_command_to_the_page(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    init_default_scope('mmdet')
    file, page, plot = tmp_path / 'cost.json', tmp_path / 'cost.md', tmp_path / 'cost.svg'
    words = ['--shape', '64', '96', '--rounds', '1', '--warmup', '1', '--against', 'mmrazor', '--threads', '1']
    main([str(config), *words, '--profile', '--device', 'cpu', '--json', str(file)])
    said = capsys.readouterr().out
    assert 'over_floor' in said and 'added ms a step' in said
    figures = json.loads(file.read_text())
    (setting,) = figures['settings']
    assert (setting['height'], setting['width'], setting['batch']) == (64, 96, 1)
    page.write_text('before\n<!-- cost -->\nold\n<!-- /cost -->\n<!-- cost gpus -->\n<!-- /cost gpus -->\nbehind\n')
    write_report([str(file), '--page', str(page), '--plot', str(plot)])
    text = page.read_text()
    assert text.startswith('before') and text.endswith('behind\n') and 'old' not in text
    median = setting['ratios'][DISTILLED]['over_FpnTeacherDistill']['median']
    assert f'**{median:.2f}**' in text and figures['command'] in text
    assert setting['distilled_gradients_MiB'] == setting['gradients_MiB']  # this method has no connectors
    sent = 2 * 63 / 64 * setting['distilled_gradients_MiB']
    assert f'| {sent:.0f} |' in text
    assert 'ms added to plain and teacher' in text
    assert plot.read_text().startswith('<?xml')
    details = tmp_path / 'details.md'
    write_report([str(file), '--page', str(page), '--details', str(details)])
    text = page.read_text()
    assert f'**{median:.2f}**' in text and figures['command'] not in text and 'ms added' not in text
    assert 'CPU cores' in figures['hardware']
    assert figures['command'] in details.read_text() and 'ms added to plain and teacher' in details.read_text()
    with pytest.raises(ValueError, match='at least one'):
        cost_figure([])


def test_the_plot_tells_the_size_from_the_batch():
    def setting(side: int, batch: int) -> dict:
        return dict(height=side, width=side, batch=batch, arms={PLAIN: dict(seconds=dict(median=side * batch / 100))})

    settings = [setting(320, 1), setting(320, 4), setting(320, 2), setting(640, 1)]
    figure = cost_figure([dict(config='a/x_coco.py', settings=settings), dict(config='y.py', settings=settings[:1])])
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in drawn] == ['x_coco\nbatch 1', 'x_coco\n320x320 px']
    size, batch = ([line.get_xydata().tolist() for line in axes.lines] for axes in drawn)
    assert size == [[[0.1024, 3.2], [0.4096, 6.4]]]
    assert batch == [[[1, 3.2], [2, 6.4], [4, 12.8]]]
    (alone,) = cost_figure([dict(config='y.py', settings=settings[:1])]).axes
    assert [line.get_xydata().tolist() for line in alone.lines] == [[[0.1024, 3.2]]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_measures_on_a_gpu(config: Path, tmp_path: Path):
    words = ['--shape', '128', '160', '--rounds', '2', '--against', 'mmrazor', '--teacher', 'bf16,channels_last']
    found = benchmark(parse_arguments([str(config), *words, '--device', 'cuda']))
    parts = found['settings'][0]['arms'][DISTILLED]['parts']
    assert min(parts.values()) > 0


def test_the_memory_of_an_arm_is_asked_for_wherever_the_configuration_stands():
    options = {'--shape': 2, '--batch': 2, '--json': 1, '--memory': 0}
    words = ['--memory', 'my.py', '--shape', '64', '96', '--batch', '1', '2', '--json=a b.json', '--threads', '1']
    assert without(words, options) == ['my.py', '--threads', '1']
    assert without(['--shape', '64', '96', 'my.py', '--against', 'mmrazor'], options) == [
        'my.py',
        '--against',
        'mmrazor',
    ]
    assert without(['--json', 'x.json', 'my.py', '--memory'], options) == ['my.py']
