"""The benchmark of SSIM compares what it says, in a fair order; no test looks at how long anything took."""

import json
from pathlib import Path

import pytest
import torch

from mmkd.functional import ssim_fused
from mmkd.testing import benchmark_ssim
from mmkd.testing.benchmark_ssim import main, measure_differences, measure_times, parse_arguments, step
from mmkd.testing.ssim_forms import FORMS, OURS, PLAIN, constants, loss_with, our_loss, wanted_forms

SMALL = ['--height', '96', '--width', '112', '--channels', '3', '--rounds', '2']
OWN = {name: form for name, form in FORMS.items() if name.startswith('mmkd')}


@pytest.fixture(autouse=True)
def own_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other libraries, which need not be installed."""
    monkeypatch.setattr('mmkd.testing.ssim_forms.FORMS', OWN)


def test_constants_hold_inside_and_are_those_of_before_behind():
    def now() -> tuple:
        return ssim_fused.DENSE, ssim_fused.PART, ssim_fused.PART_ELSEWHERE

    before = now()
    with pytest.raises(KeyError), constants(dense=7, part=64):
        assert (ssim_fused.DENSE, ssim_fused.PART.get('cpu', ssim_fused.PART_ELSEWHERE)) == (7, 64)
        raise KeyError
    assert now() == before
    with constants(dense=7):
        assert now() == (7, *before[1:])


def test_dense_chooses_matrix_products_and_part_how_much_is_worked_on(monkeypatch: pytest.MonkeyPatch):
    done = []
    for name in ('blur_matrix', 'split_into_parts'):
        real = getattr(ssim_fused, name)

        def spy(*arguments, name=name, real=real):
            found = real(*arguments)
            found = list(found) if name == 'split_into_parts' else found
            done.append(len(found) if name == 'split_into_parts' else name)
            return found

        monkeypatch.setattr(ssim_fused, name, spy)
    maps = [torch.rand(2, 32, 12, 14)], [torch.rand(2, 32, 12, 14)]
    chosen = [dict(dense=12 * 14 - 1), dict(dense=12 * 14), dict(part=16 * 12 * 14), dict(part=2 * 32 * 12 * 14)]
    for one in chosen:
        step(loss_with(**one), *maps)
    matrices = ['blur_matrix'] * 2
    assert done == [1, *matrices, 1, *matrices, 4, *matrices, 1]  # 12 * 14 cells are dense as shipped


def test_every_value_is_a_form_of_its_own():
    args = parse_arguments([*SMALL, '--dense', '0', '2048', '--part', '4096'])
    assert list(args.forms) == [*OWN, 'mmkd_same_dense_0', 'mmkd_same_dense_2048', 'mmkd_same_part_4096']
    assert list(wanted_forms(compiled=True))[-2:] == ['mmkd_compiled_same', 'mmkd_compiled_valid']


def test_every_form_gives_what_the_plain_one_gives():
    args = parse_arguments([*SMALL, '--dense', '0', '2048', '--part', '64'])
    found = measure_differences(args.forms, args)
    assert set(found) == set(args.forms) - set(PLAIN.values())
    assert max(value for one in found.values() for value in one.values()) < 1e-5


@pytest.mark.parametrize('wrong', ['loss', 'gradient', 'nothing'])
def test_a_form_that_computes_something_else_is_refused_before_anything_is_timed(
    wrong: str, monkeypatch: pytest.MonkeyPatch
):
    def make():
        loss = our_loss('same')

        def changed(x, y):
            value = loss(x, y)
            return {'loss': 1.01 * value, 'gradient': value + 0.01 * (value - value.detach())}.get(wrong, value / 0 * 0)

        return changed

    args = parse_arguments(SMALL)
    args.forms['wrong'] = ('same', make)
    monkeypatch.setattr(benchmark_ssim, 'measure_times', lambda *_: pytest.fail('was timed'))
    with pytest.raises(RuntimeError, match='wrong must give what mmkd_plain_same gives.*nothing was timed'):
        benchmark_ssim.report(args)


def test_forms_take_turns_in_random_orders_behind_the_warm_up(monkeypatch: pytest.MonkeyPatch):
    args = parse_arguments([*SMALL, '--rounds', '12', '--warmup', '3'])
    order = []

    def spy(losses: object, *_) -> tuple:
        order.append(losses)
        return torch.zeros(()), []

    monkeypatch.setattr(benchmark_ssim, 'step', spy)
    forms = {name: ('same', lambda name=name: name) for name in 'abc'}
    times = measure_times(forms, args)
    assert {name: len(one) for name, one in times.items()} == dict.fromkeys('abc', 12)
    rounds = [''.join(order[i : i + 3]) for i in range(0, 45, 3)]
    assert len(order) == 45 and all(sorted(one) == list('abc') for one in rounds)
    assert {'ab', 'ba', 'bc', 'cb'} <= {pair for one in rounds for pair in (one[:2], one[1:])}


def test_the_file_says_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(benchmark_ssim, 'memory_in_own_process', lambda *_: 2**20)
    monkeypatch.setattr(benchmark_ssim, 'version', lambda name: '1')
    words = [*SMALL, '--warmup', '2', '--threads', '1', '--dense', '0', '--json', str(tmp_path / 'x.json')]
    main(words)
    figures = json.loads((tmp_path / 'x.json').read_text())
    assert (figures['threads'], figures['warmup'], figures['queued'], figures['rounds']) == (1, 2, 1, 2)
    assert (figures['dense'], figures['part']) == (ssim_fused.DENSE, ssim_fused.PART['cpu'])
    assert figures['command'].endswith(' '.join(words))
    assert set(figures['forms']) == {*OWN, 'mmkd_same_dense_0'}
    for name in OURS.values():
        assert figures['forms'][name]['time_ratio']['median'] == 1
    assert 'processor time' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['--height', '80'], '>= 81 px, got 80'),
        (['--dense', '-1'], 'got -1'),
        (['--part', '0'], 'got 0'),
        (['--memory-of', 'mmkd_same_dense_3'], "got 'mmkd_same_dense_3'"),
        (['--heigh', '96'], 'unrecognized arguments: --heigh'),
    ],
)
def test_refuses(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse_arguments(words)
    assert says in capsys.readouterr().err


def test_threads_and_queue_are_those_of_the_device():
    assert parse_arguments([]).threads == 1
    assert parse_arguments(['--device', 'cuda']).threads is None
    with pytest.raises(ValueError, match='--queued must be 1 with --device cpu'):
        main(['--queued', '2'])


def test_the_memory_of_a_form_is_asked_for_by_its_name(capsys: pytest.CaptureFixture[str]):
    main([*SMALL, '--part', '4096', '--memory-of', 'mmkd_same_part_4096'])
    assert int(capsys.readouterr().out.split()[-1]) >= 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_every_form_gives_what_the_plain_one_gives_on_a_gpu():
    args = parse_arguments([*SMALL, '--device', 'cuda', '--dense', '0', '2048', '--part', '64'])
    measure_differences(args.forms, args)
    assert min(min(one) for one in measure_times(args.forms, args).values()) > 0
