"""What a distillation adds, operator by operator; no test looks at how long anything took."""

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from mmkd.engine.cost_arms import DISTILLED, PLAIN, TEACHER, Arm
from mmkd.engine.cost_profile import added, net_added, operator_seconds, own_seconds, profile_arms, work
from mmkd.testing.cost_report import operator_table, work_table

MAP = torch.rand(64, 64)


def arm(name: str, *steps) -> Arm:
    return Arm(name, lambda: [step(MAP) for step in steps], nn.Identity())


def test_operators_that_ran_are_named():
    seconds = operator_seconds(arm(PLAIN, torch.cos, torch.erf), 'cpu')
    assert {'aten::cos', 'aten::erf'} <= set(seconds) and min(seconds.values()) > 0
    assert 'aten::cumsum' not in seconds


def test_seconds_are_those_of_one_step():
    calls = []
    operator_seconds(Arm(PLAIN, lambda: calls.append(1), nn.Identity()), 'cpu', steps=4)
    assert len(calls) == 4


def event(name: str, start: int, end: int, device: DeviceType = DeviceType.CPU, **more) -> FunctionEvent:
    return FunctionEvent(
        id=start, name=name, thread=1, start_us=start, end_us=end, device_type=device, stack=[], **more
    )


def profiled_on_a_gpu() -> EventList:
    """As torch gives it: an operator and the one that it calls, its kernel of 400 us, and an annotation around both."""
    gpu = dict(use_device='cuda')
    whole = event('aten::conv2d', 10, 110, **gpu)
    inner = event('aten::cudnn_convolution', 20, 90, **gpu)
    inner.append_kernel('cutlass_kernel', 0, 400)
    step = event('Optimizer.step#SGD.step', 0, 500, is_user_annotation=True, **gpu)
    step.append_kernel('Optimizer.step#SGD.step', 0, 900)
    whole.append_cpu_child(inner)
    step.append_cpu_child(whole)
    kernel = event('cutlass_kernel', 200, 600, DeviceType.CUDA, **gpu)
    span = event('Optimizer.step#SGD.step', 200, 1100, DeviceType.CUDA, is_user_annotation=True, **gpu)
    events = EventList([step, whole, inner, kernel, span], use_device='cuda')
    events._tree_built = True
    return events.key_averages()


def test_a_kernel_counts_once_under_the_operator_that_launched_it():
    events = profiled_on_a_gpu()
    assert sum(event.self_device_time_total for event in events) > 400
    assert own_seconds(events, cuda=True) == {'aten::cudnn_convolution': pytest.approx(400e-6)}


def test_on_a_cpu_an_operator_counts_without_those_that_it_calls():
    expected = {'aten::conv2d': pytest.approx(30e-6), 'aten::cudnn_convolution': pytest.approx(70e-6)}
    assert own_seconds(profiled_on_a_gpu(), cuda=False) == expected


def test_plain_teacher_and_the_first_distilled_arm_are_profiled():
    arms = [arm(PLAIN, torch.cos), arm(TEACHER, torch.sin), arm(DISTILLED, torch.cos, torch.sin, torch.erf)]
    more = [arm('FpnTeacherDistill', torch.tan), arm(f'{DISTILLED} (fold_bn)', torch.tan)]
    found = profile_arms([*arms, *more], 'cpu')
    assert list(found) == [PLAIN, TEACHER, DISTILLED]
    assert 'aten::erf' in dict(added(found))


def test_added_is_what_plain_and_teacher_do_not_take():
    operators = {PLAIN: {'a': 1.0, 'b': 2.0}, TEACHER: {'a': 0.5}, DISTILLED: {'a': 4.0, 'b': 1.5, 'c': 3.0}}
    assert added(operators) == [('c', 3.0), ('a', 2.5)]
    del operators[TEACHER]
    assert added(operators) == [('a', 3.0), ('c', 3.0)]


def test_what_took_less_time_counts_in_the_net():
    operators = {PLAIN: {'a': 1.0, 'b': 2.0, 'gone': 0.25}, TEACHER: {'a': 0.5}, DISTILLED: {'a': 1.75, 'b': 1.5}}
    assert added(operators) == [('a', 0.25)]
    assert net_added(operators) == -0.5  # of 3.75 and 3.25
    del operators[TEACHER]
    assert net_added(operators) == 0.0


def test_the_table_names_the_largest_their_sum_and_the_net():
    operators = {PLAIN: {'aten::op0': 0.058}, DISTILLED: {f'aten::op{n}': n / 1000 for n in range(10)}}
    profiled = dict(height=320, width=640, batch=2, operators=operators)
    table = operator_table([dict(config='configs/x.py', settings=[profiled, dict(height=1, width=1, batch=1)])])
    assert table.splitlines()[2:] == [
        '| `x` | 320x640, batch 2 | -13 | +45 | op9 9, op8 8, op7 7, op6 6, op5 5, op4 4 |'
    ]
    assert operator_table([dict(config='x.py', settings=[])]) == ''


def test_work_is_counted_forward_and_backward():
    weight = torch.rand(64, 32, requires_grad=True)
    alone = work(Arm(PLAIN, lambda: MAP @ weight.detach(), nn.Identity()))
    trained = work(Arm(PLAIN, lambda: (MAP @ weight).sum().backward(), nn.Identity()))
    assert alone == dict(gflops=2 * 64 * 64 * 32 / 1e9, operators=2)  # detach and mm
    assert trained['gflops'] == pytest.approx(2 * alone['gflops'])  # and the gradient of the weight


def test_the_table_of_work_has_the_share_of_mmrazors():
    counts = {'plain': (1.0, 5), 'distilled': (3.0, 9), 'SingleTeacherDistill': (4.0, 11)}
    setting = dict(height=8, width=8, batch=1, work={n: dict(gflops=g, operators=o) for n, (g, o) in counts.items()})
    rows = work_table([dict(config='x.py', settings=[setting, dict(height=1, width=1, batch=1)])]).splitlines()[2:]
    assert rows[1] == '| `x` | 8x8, batch 1 | distilled | 3.00 | 9 | 0.750 | - |'
    assert len(rows) == 3
    assert work_table([dict(config='x.py', settings=[])]) == ''


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_kernels_count_on_a_gpu():
    device = MAP.cuda()
    step = Arm(PLAIN, lambda: torch.erf(device), nn.Identity())
    seconds = operator_seconds(step, 'cuda')
    assert seconds['aten::erf'] > 0
    assert not any('elementwise_kernel' in name for name in seconds)  # it counts as the operator's
