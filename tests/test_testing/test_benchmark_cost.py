"""The cost benchmark measures what it says; no test looks at how long anything took."""

import argparse
import json
import random
import weakref
from itertools import pairwise, permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm, Workbench, made_batch, stock_distiller
from mmkd.engine.cost_profile import work
from mmkd.engine.cost_rounds import Times, queued_steps, ratio, spread, step_seconds, summarise, take_turns
from mmkd.engine.launch import load_config
from mmkd.testing import benchmark_cost
from mmkd.testing.benchmark_cost import benchmark, builders, gradients, main, peak_memory, rehearse, release, without
from mmkd.testing.cost_options import check, parse_arguments
from mmkd.testing.cost_report import cost_figure, gpu_table, notes, split_table
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


def orders(names: str, rounds: int) -> list[str]:
    order: list[str] = []
    arms = [Arm(name, lambda name=name: order.append(name), torch.nn.Identity()) for name in names]
    take_turns(arms, rounds - 1, 1, 'cpu')
    return [''.join(order[i : i + len(names)]) for i in range(0, len(order), len(names))]


def test_every_arm_comes_behind_every_other_in_some_round():
    found = orders('abc', 20)
    assert all(sorted(one) == list('abc') for one in found)
    assert {one[0] for one in found} == set('abc')
    assert {pair for one in found for pair in pairwise(one)} == set(permutations('abc', 2))


def test_the_orders_are_the_same_in_every_run_and_touch_no_other_random_numbers():
    before = random.getstate()
    assert orders('abcd', 5) == orders('abcd', 5)
    assert random.getstate() == before


def test_images_a_second_are_those_of_the_clock():
    found = summarise({PLAIN: Times(wall=[2.0, 4.0, 3.0], busy=[1.0, 1.0, 1.0])}, 6)
    assert found['arms'][PLAIN]['seconds']['median'] == 1.0
    assert found['arms'][PLAIN]['images_a_second'] == 2.0


def test_the_table_takes_images_a_second_from_the_clock_of_older_files_too():
    def row(**stored) -> list[str]:
        arm = dict(seconds=dict(median=1.0), images_a_second=6.0, **stored)
        setting = dict(height=8, width=8, batch=6, weights_MiB={}, arms={PLAIN: arm})
        head, _, cells = split_table([dict(config='x.py', settings=[setting])]).splitlines()
        place = head.split(' | ').index('images/s (clock time)')
        return cells.split(' | ')[place]

    assert row(wall_seconds=dict(median=2.0)) == '3.00'
    assert row() == '6.00 (of the time that counts)'


def test_warm_up_does_not_count():
    calls = []
    times = take_turns([Arm('a', lambda: calls.append(len(calls)), torch.nn.Identity())], 1, 2, 'cpu')
    assert len(calls) == 3 and len(times['a'].wall) == 1


# ---- on a GPU, by stand-ins -----------------------------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU is told, in order; each event is 300 ms behind the one before."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append('event')
            self.moment = 300.0 * said.count('event')

        def elapsed_time(self, later: 'Event') -> float:
            return later.moment - self.moment

    monkeypatch.setattr('torch.cuda.Event', Event)
    monkeypatch.setattr('torch.cuda.synchronize', lambda: said.append('wait'))
    monkeypatch.setattr('torch.cuda.empty_cache', lambda: said.append('empty'))
    return said


def test_a_gpu_is_waited_for_once_behind_its_queue_of_steps(pretended_gpu: list[str]):
    _, seconds = step_seconds(lambda: pretended_gpu.append('step'), 'cuda', 3)
    assert pretended_gpu == ['wait', 'event', 'step', 'step', 'step', 'event', 'wait']
    assert seconds == pytest.approx(0.1)


def test_the_parts_are_means_of_the_queued_steps(pretended_gpu: list[str]):
    pending: list[dict] = []

    def step() -> None:
        pending.append(dict(step=4.0, teacher=float(len(pending)), **({'distill': 3.0} if pending else {})))

    def finished() -> list[dict]:
        taken = list(pending)
        pending.clear()
        return taken

    arm = Arm(DISTILLED, step, torch.nn.Identity(), SimpleNamespace(finished=finished))
    times = take_turns([arm], 2, 1, 'cuda', 3)[DISTILLED]
    assert times.parts == dict(step=[4.0, 4.0], teacher=[1.0, 1.0], distill=[2.0, 2.0])
    assert times.busy == pytest.approx([0.1, 0.1])


def test_several_steps_a_turn_are_for_gpus(config: Path):
    assert [queued_steps(None, 'cuda'), queued_steps(5, 'cuda'), queued_steps(None, 'cpu')] == [3, 5, 1]
    with pytest.raises(ValueError, match='--queued must be 1 with --device cpu.*got 3'):
        check(parse_arguments([str(config), '--device', 'cpu', '--queued', '3']), load_config(str(config)))


def test_on_a_cpu_one_step_is_one_step_and_nobody_is_waited_for(pretended_gpu: list[str]):
    calls = []
    step_seconds(lambda: calls.append(1), 'cpu')
    assert calls == [1] and pretended_gpu == []


def test_what_a_gpu_kept_is_given_back(pretended_gpu: list[str]):
    release('cpu')
    assert pretended_gpu == []
    release('cuda')
    assert pretended_gpu == ['empty']


def test_arms_are_gone_before_memory_is_measured_and_before_the_next_input(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    models, seen = [], []

    def spy(arms: list[Arm], *arguments) -> dict[str, Times]:
        for arm in arms:
            arm.model.__dict__['itself'] = arm.model  # the garbage collector has to look for it
            models.append(weakref.ref(arm.model))
        return take_turns(arms, *arguments)

    def alive(name: str) -> float:
        seen.append((name, sum(model() is not None for model in models)))
        return 1.0

    class Bench(Workbench):
        def __init__(self, *arguments) -> None:
            alive('next')
            super().__init__(*arguments)

    monkeypatch.setattr(benchmark_cost, 'take_turns', spy)
    monkeypatch.setattr(benchmark_cost, 'Workbench', Bench)
    monkeypatch.setattr(benchmark_cost, 'memory_in_own_process', lambda args, name, *_: alive(name))
    words = ['--shape', '64', '96', '--batch', '1', '2', '--rounds', '1', '--warmup', '1', '--device', 'cpu']
    benchmark(parse_arguments([str(config), *words, '--memory']))
    assert len(models) == 6
    assert seen == [(name, 0) for name in ('next', PLAIN, DISTILLED)] * 2


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


@pytest.fixture
def config_with_options(config: Path) -> Path:
    """The small pair, whose teacher has an option in the file."""
    cfg = Config.fromfile(str(config))
    cfg.model.teacher = dict(config=cfg.model.teacher, channels_last=True)
    cfg.dump(str(config))
    return config


def test_two_arms_of_one_name_are_refused(config_with_options: Path):
    def checked(*words: str) -> None:
        path = str(config_with_options)
        check(parse_arguments([path, *words]), load_config(path))

    checked('--teacher', 'fold_bn')
    with pytest.raises(ValueError, match=r"--teacher must .* got channels_last: the configuration's own .* 'distilled"):
        checked('--teacher', 'channels_last')
    with pytest.raises(ValueError, match='got bf16,fold_bn: an earlier --teacher'):
        checked('--teacher', 'fold_bn,bf16', '--teacher', 'bf16,fold_bn')


def test_memory_has_the_names_of_the_arms(config_with_options: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    path, name = str(config_with_options), f'{DISTILLED} (channels_last)'
    words = ['--shape', '64', '96', '--rounds', '1', '--warmup', '1', '--device', 'cpu', '--teacher', 'fold_bn']
    bench = Workbench(load_config(path), (64, 96), 1)
    found = builders(bench, parse_arguments([path, *words]))
    assert list(found) == [PLAIN, TEACHER, name, f'{DISTILLED} (fold_bn)']
    assert all(build().name == key for key, build in found.items())
    benchmark(parse_arguments([path, *words, '--memory-of', name]))
    assert int(capsys.readouterr().out.split()[-1]) > 0
    monkeypatch.setattr(benchmark_cost, 'memory_in_own_process', lambda args, name, *_: 77.0)
    (setting,) = benchmark(parse_arguments([path, *words, '--memory']))['settings']
    assert setting['memory_MiB'] == {key: 77.0 for key in setting['arms'] if key != TEACHER}
    figures = dict(config='x.py', settings=[setting])
    (row,) = (row for row in split_table([figures]).splitlines() if f'| {name} |' in row)
    assert row.endswith('| 77 (+0) |')


@pytest.mark.parametrize('words', [['--sha', '64', '96'], ['--memory-o', PLAIN], ['--teach', 'bf16']])
def test_options_are_written_out_since_another_process_gets_some_of_them(words: list[str], capsys):
    with pytest.raises(SystemExit):
        parse_arguments(['x.py', *words])
    assert f'unrecognized arguments: {words[0]}' in capsys.readouterr().err


def test_a_cpu_works_with_one_thread_unless_told_otherwise():
    words = ['x.py', '--device']
    assert parse_arguments([*words, 'cpu']).threads == 1
    assert parse_arguments([*words, 'cpu', '--threads', '2']).threads == 2
    assert parse_arguments([*words, 'cuda']).threads is None


def test_the_notes_say_which_time_counts():
    def note(**known) -> str:
        figures = dict(command='x', hardware='y', rounds=1, versions={}, date='z', **known)
        return notes([figures])

    assert 'thread(s), processor time, 1 inter' in note(device='cpu', threads=1)
    assert 'thread(s), processor time, the sum over all threads, 1 inter' in note(device='cpu', threads=2, queued=1)
    assert 'thread(s), clock time, 1 inter' in note(device='cuda', threads=2)
    assert "thread(s), the device's time, 3 queued step(s) a turn, 1 inter" in note(device='cuda', threads=2, queued=3)


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
    assert 'over_floor' in said and 'added ms a step' in said and 'all together' in said
    assert 'batch 1: processor time' in said and 'images/s (clock time)' in said
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
    assert 'net ms to plain and teacher' in text
    assert plot.read_text().startswith('<?xml')
    details = tmp_path / 'details.md'
    write_report([str(file), '--page', str(page), '--details', str(details)])
    text = page.read_text()
    assert f'**{median:.2f}**' in text and figures['command'] not in text and 'net ms' not in text
    assert 'CPU cores' in figures['hardware']
    assert figures['command'] in details.read_text() and 'net ms to plain and teacher' in details.read_text()
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
    assert found['queued'] == 3
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
