"""The diagnosis of a distillation: right numbers, no trace in the training, advice from stated rules."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmkd.engine.config_check import check_config
from mmkd.engine.diagnosis import DiagnosisProbe, LossReading, Reading, shared_parameters, similarity
from mmkd.engine.diagnosis_rules import advise, summarise, table_text
from mmkd.engine.hooks import diagnosis_hook
from mmkd.engine.hooks.diagnosis_hook import DiagnosisHook
from mmkd.engine.random_state import get_random_state
from mmkd.engine.small_evaluation import SmallScores
from mmkd.functional.similarity import linear_cka
from mmkd.testing.methods import distilled_model
from mmkd.testing.toy_run import ToyRun, make_toy_run

HOOK = dict(type='mmkd.DiagnosisHook', interval=2, images=2)
SCORES = SmallScores({'coco/bbox_mAP': 0.5}, 3, 3)


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'), train=6)


def trained(toy: ToyRun, folder: Path, **options: object) -> Runner:
    cfg = toy.load(work_dir=str(folder), experiment_name=folder.name, log_level='WARNING', **options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def whole_state(runner: Runner) -> dict[str, torch.Tensor]:
    model = runner.model
    state = {f'model.{key}': value for key, value in model.state_dict().items()}
    state |= {f'distiller.{key}': value for key, value in model.distiller.saved_state().items()}
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            state |= {f'ema.{key}': value for key, value in hook.ema_model.state_dict().items()}
    return state | {'random': get_random_state()['torch']}


# ---- the training is not touched ------------------------------------------------------------------------------------


def test_weights_statistics_connectors_ema_and_random_state_are_bit_equal_with_and_without(toy, tmp_path):
    ema = [dict(type='EMAHook', momentum=0.1)]
    plain = whole_state(trained(toy, tmp_path / 'plain', custom_hooks=ema))
    watched = trained(toy, tmp_path / 'watched', custom_hooks=[*ema, dict(HOOK, interval=1)])
    found = whole_state(watched)
    assert found.keys() == plain.keys() and any(key.startswith('ema.') for key in plain)
    assert [key for key in plain if not torch.equal(plain[key], found[key])] == []
    assert not watched.model._forward_hooks or all('Probe' not in str(h) for h in watched.model._forward_hooks.values())


def test_readings_go_to_a_file_to_the_visualiser_and_end_in_advice(toy, tmp_path):
    runner = trained(toy, tmp_path, custom_hooks=[HOOK])
    log = Path(runner.log_dir)
    lines = [json.loads(line) for line in (log / 'diagnosis.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in lines] == [1, 3]  # every second of three, and the last
    first = lines[0]['losses']['loss_kd']
    assert first['share'] == pytest.approx(first['gradient'] / lines[0]['gradient'])
    assert -1 <= first['cosine'] <= 1 and 0 < first['similarity'] < 1 and 0 < first['before_connector'] < 1
    scalars = [json.loads(line) for line in (log / 'vis_data' / 'scalars.json').read_text().splitlines()]
    assert [s['step'] for s in scalars if 'diagnosis/loss_kd/share' in s] == [1, 3]
    end = json.loads((log / 'diagnosis.json').read_text())
    assert end['scores'] is None or end['scores'][0] == 'coco/bbox_mAP'
    assert any('Only 2 readings' in text for text in end['advice'])


def test_the_diagnosis_is_kept_where_the_scores_fail(toy, tmp_path, monkeypatch):
    """It is written before they are asked for, and their failure ends no run."""
    seen = []

    def fail(self: DiagnosisHook, runner: Runner) -> None:
        seen.append(json.loads((Path(runner.log_dir) / 'diagnosis.json').read_text())['scores'])
        raise RuntimeError('no kernel')

    monkeypatch.setattr(DiagnosisHook, '_scores', fail)
    runner = trained(toy, tmp_path, custom_hooks=[HOOK])
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert seen == [None]
    assert 'could not be scored (RuntimeError: no kernel)' in log


def test_can_be_switched_on_from_the_command_line(toy, tmp_path):
    options = dict(default_hooks__diagnosis__type='mmkd.DiagnosisHook', default_hooks__diagnosis__images=0)
    assert list(Path(trained(toy, tmp_path, **options).log_dir).glob('diagnosis.jsonl'))


# ---- the numbers ----------------------------------------------------------------------------------------------------


def built(toy: ToyRun, model: dict | None = None) -> tuple[torch.nn.Module, dict]:
    cfg = toy.load()
    torch.manual_seed(3)
    network = MODELS.build(copy.deepcopy(model or cfg.model))
    network.init_weights()
    batch = next(iter(Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)))
    return network.train(), network.data_preprocessor(batch, training=True)


def read(model: torch.nn.Module, batch: dict, **options: object) -> tuple[Reading, dict]:
    probe = DiagnosisProbe(model, **options)
    probe.arm()
    losses = model(**batch, mode='loss')
    reading = probe.take()
    probe.close()
    return reading, losses


def by_backward(model: torch.nn.Module, batch: dict, prefix: str) -> torch.Tensor:
    """Gradient of some losses in the shared parameters, by a forward and a backward pass of their own."""
    model.zero_grad(set_to_none=True)
    losses = {key: value for key, value in model(**batch, mode='loss').items() if key.startswith(prefix)}
    model.parse_losses(losses)[0].backward()
    shared = shared_parameters(model.architecture)
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in shared]).double()


def test_gradients_are_those_of_separate_backward_passes(toy):
    model, batch = built(toy)
    reading, _ = read(model, batch)
    task, distilled = by_backward(model, batch, 'student.'), by_backward(model, batch, 'distill.')
    found = reading.losses['loss_kd']
    assert reading.gradient == pytest.approx(task.norm().item(), rel=1e-4)
    assert found.gradient == pytest.approx(distilled.norm().item(), rel=1e-4)
    assert reading.share('loss_kd') == pytest.approx((distilled.norm() / task.norm()).item(), rel=1e-4)
    assert found.cosine == pytest.approx(torch.cosine_similarity(task, distilled, dim=0).item(), abs=1e-4)
    scaled, _ = read(model, batch, loss_scale=lambda: 1024.0)
    assert scaled.losses['loss_kd'].gradient == pytest.approx(found.gradient, rel=1e-4)
    assert scaled.gradient == pytest.approx(reading.gradient, rel=1e-4)


def test_backward_after_a_reading_gives_the_gradient_of_a_step_without_one(toy):
    (watched, batch), (plain, _) = built(toy), built(toy)
    _, losses = read(watched, batch)
    assert all(p.grad is None for p in watched.parameters())
    watched.parse_losses(losses)[0].backward()
    plain.parse_losses(plain(**batch, mode='loss'))[0].backward()
    grads = [[p.grad for p in model.parameters() if p.grad is not None] for model in (watched, plain)]
    assert grads[0] and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_similarity_is_that_of_the_records_before_and_behind_the_connector(toy):
    model, batch = built(toy)
    reading, _ = read(model, batch)
    heard = {}
    for side, network in (('student', model.architecture), ('teacher', model.teacher)):
        network.neck.register_forward_hook(lambda _, __, out, side=side: heard.update({side: out}), prepend=True)
    adapted = []
    model.distiller.connectors['adapt'].register_forward_hook(lambda _, __, out: adapted.append(out))
    model(**batch, mode='loss')
    expected = similarity(heard['student'], heard['teacher'])
    assert reading.losses['loss_kd'].before_connector == pytest.approx(expected, abs=1e-6)
    assert reading.losses['loss_kd'].similarity == pytest.approx(similarity(adapted[0], heard['teacher']), abs=1e-6)


def test_similarity_of_maps_is_cka_over_cells_and_averages_finer_grids():
    x, y = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 4, 6)
    rows = [side.permute(0, 2, 3, 1).reshape(-1, side.shape[1]) for side in (x, y)]
    assert similarity(x, y) == pytest.approx(linear_cka(*rows).item())
    doubled = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert similarity((x, x), (y, doubled)) == pytest.approx(similarity(x, y), abs=1e-5)
    assert math.isnan(similarity(x[:, :, :1, :2], y[:, :, :1, :2]))  # too few cells
    assert math.isnan(similarity((x, x), (y,)))


@pytest.mark.parametrize('method', ['mssd', 'frskd_dense', 'ikd'])
def test_every_kind_of_method_is_read(toy, method):
    cfg = toy.load()
    given = dict(teacher=cfg.model.teacher, teacher_ckpt=cfg.model.teacher_ckpt)
    model, batch = built(toy, distilled_model(cfg.model.architecture.to_dict(), method, given))
    model.distiller.schedules = {}
    for name, parameter in model.named_parameters():
        if '.gains.' in name:  # at 0 the self-teacher's features are the student's, and there is nothing to learn
            torch.nn.init.constant_(parameter, 0.5)
    reading, _ = read(model, batch)
    names = set(model.distiller.mappings)
    assert names <= set(reading.losses)
    assert ('all together' in reading.losses) == (len(names) > 1)
    assert ('self_teacher' in reading.losses) == (method == 'frskd_dense')
    assert all(reading.losses[name].gradient > 0 for name in names)
    if method == 'mssd':  # levels of one network: there is no teacher's record to compare with
        assert all(math.isnan(reading.losses[name].before_connector) for name in names)
        assert any(not math.isnan(reading.losses[name].similarity) for name in names)


def test_mixed_precision_is_read_in_full_precision(toy):
    model, batch = built(toy)
    full, _ = read(model, batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed, _ = read(model, batch)
    assert mixed.share('loss_kd') == pytest.approx(full.share('loss_kd'), rel=0.1)
    assert mixed.losses['loss_kd'].similarity == pytest.approx(full.losses['loss_kd'].similarity, abs=0.05)


def test_activation_checkpoints_are_left_alone_and_said(toy):
    cfg = toy.load()
    cfg.model.architecture.backbone.with_cp = True
    model, batch = built(toy, cfg.model)
    reading, losses = read(model, batch)
    assert math.isnan(reading.gradient) and not math.isnan(reading.losses['loss_kd'].similarity)
    advice = advise(summarise([reading] * 4))
    assert any('with_cp' in text for text in advice) and not any('nan' in text for text in advice)
    model.parse_losses(losses)[0].backward()


def test_two_processes_read_the_mean_of_both(toy, tmp_path):
    worker = str(Path(__file__).with_name('diagnosis_ranks.py'))
    running = [
        subprocess.Popen([sys.executable, worker, str(rank), str(toy.config), str(tmp_path)]) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    ranks = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    assert ranks[0]['mean'] == ranks[1]['mean'] and ranks[0]['own'] != ranks[1]['own']
    for key, value in ranks[0]['mean'].items():
        assert value == pytest.approx((ranks[0]['own'][key] + ranks[1]['own'][key]) / 2, rel=1e-6), key
    assert ranks[0]['weights'] == ranks[1]['weights'] == ranks[0]['weights_without']


def test_a_resumed_training_keeps_its_readings(toy, tmp_path):
    """Two epochs of three iterations; the second as a run of its own."""
    options = dict(custom_hooks=[dict(HOOK, interval=1)], train_cfg=dict(max_epochs=2))
    whole = trained(toy, tmp_path / 'whole', **options)
    (tmp_path / 'cut').mkdir()
    shutil.copy(tmp_path / 'whole' / 'epoch_1.pth', tmp_path / 'cut')
    (tmp_path / 'cut' / 'last_checkpoint').write_text(str(tmp_path / 'cut' / 'epoch_1.pth'))
    resumed = trained(toy, tmp_path / 'cut', resume=True, **options)
    found = [next(hook for hook in run.hooks if isinstance(hook, DiagnosisHook)).readings for run in (whole, resumed)]
    assert [len(readings) for readings in found] == [6, 6]
    assert [r.gradient for r in found[0]] == [r.gradient for r in found[1]]
    assert json.loads((Path(resumed.log_dir) / 'diagnosis.json').read_text())['losses'][0]['readings'] == 6
    started = trained(toy, tmp_path / 'start', load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), **options)
    assert len(next(hook for hook in started.hooks if isinstance(hook, DiagnosisHook)).readings) == 6


def test_with_ema_the_averaged_student_is_scored(toy, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr(diagnosis_hook, 'evaluate_on', lambda runner, net, loader: scored.append(net) or SCORES)
    hooks = [dict(type='EMAHook', momentum=0.1), HOOK]
    runner = trained(toy, tmp_path, custom_hooks=hooks)
    ema = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    assert scored == [runner.model.teacher, ema.ema_model.module.architecture]


# ---- the advice -----------------------------------------------------------------------------------------------------


def course(count: int = 8, **changes: tuple[float, float]) -> list[Reading]:
    """Readings of a healthy distillation, in which some numbers go from one value to another."""
    usual = dict(gradient=(0.2, 0.2), cosine=(0.1, 0.1), similarity=(0.3, 0.6), before_connector=(0.3, 0.5))
    usual |= dict(value=(2.0, 1.0)) | changes
    readings = []
    for i in range(count):
        numbers = {key: a + (b - a) * i / max(count - 1, 1) for key, (a, b) in usual.items()}
        readings.append(Reading(task=1.0, gradient=1.0, losses=dict(loss_kd=LossReading(weight=4.0, **numbers))))
    return readings


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(gradient=(0.004, 0.004)), r'little say\. Try loss_weight=5e\+02 instead of 4'),
        (dict(gradient=(0.08, 0.08)), r'0\.08 of the task.* little say\. Try loss_weight=25 instead of 4'),
        (
            dict(gradient=(2.0, 2.0)),
            r'rules the training, in the direction .* \(cosine 0\.10\)\..* loss_weight=1 instead of 4',
        ),
        (
            dict(gradient=(2.0, 2.0), cosine=(0.0, 0.0)),
            r"rules .* not share the task's direction .* loss_weight=1 ",
        ),
        (dict(cosine=(-0.2, -0.2)), r'works against the task.* -0\.20 .* 100 %'),
        (dict(similarity=(0.3, 0.3)), r'did not come closer \(similarity 0\.3\d to 0\.3\d\)'),
        (dict(before_connector=(0.3, 0.3)), 'the connector did the learning'),
        (dict(similarity=(0.97, 0.99)), 'alike from the beginning'),
        (dict(value=(2.0, 2.1)), 'the loss did not fall'),
    ],
)
def test_each_rule_speaks_where_its_threshold_is_crossed_and_alone(changes, words):
    (text,) = advise(summarise(course(**changes)))
    assert re.search(words, text), text


def test_a_healthy_distillation_gets_no_warning():
    (text,) = advise(summarise(course()), ('AP', 0.5, 0.4))
    assert text.startswith('Nothing stands out')


def test_a_teacher_that_is_no_better_is_named():
    (text,) = advise(summarise(course()), ('coco/bbox_mAP', 0.40, 0.41))
    assert 'The teacher has coco/bbox_mAP 0.400, the student 0.410' in text


def test_courses_are_not_judged_from_too_few_readings():
    texts = advise(summarise(course(3, similarity=(0.3, 0.3), cosine=(-0.5, -0.5))))
    assert len(texts) == 2 and 'Only 3 readings' in texts[1]


def test_schedule_factor_is_taken_out_of_the_value_and_the_table_shows_it(toy):
    model, batch = built(toy)
    whole, _ = read(model, batch)
    model.distiller.begin_step = lambda *_: True
    model.distiller.factors['loss_kd'] = 0.5
    half, losses = read(model, batch)
    raw = sum(value.item() for key, value in losses.items() if key.startswith('distill.'))
    assert half.losses['loss_kd'].value == pytest.approx(2 * raw)
    assert half.losses['loss_kd'].gradient == pytest.approx(whole.losses['loss_kd'].gradient / 2, rel=1e-3)
    assert 'loss_kd' in table_text(summarise([half]))


@pytest.mark.parametrize('wrong', [dict(interval=0), dict(images=-1)])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match='interval must be >= 1 and images >= 0'):
        DiagnosisHook(**wrong)


def test_refuses_a_plain_detector(toy):
    with pytest.raises(ValueError, match='needs a distillation of mmkd, got RetinaNet'):
        DiagnosisProbe(MODELS.build(toy.load().model.architecture))


# ---- without training -----------------------------------------------------------------------------------------------


def test_check_config_diagnoses_batches_without_training(toy, tmp_path):
    cfg = toy.load()
    student = MODELS.build(cfg.model.architecture)
    torch.save(dict(state_dict=student.state_dict()), tmp_path / 'start.pth')
    cfg.load_from = str(tmp_path / 'start.pth')
    cfg.model.distiller.schedules = dict(loss_kd=dict(begin=1, by_epoch=False))
    report = check_config(cfg, diagnose=5)
    titles = [title for title, _, _ in report.tables]
    (title,) = [title for title in titles if title.startswith('Diagnosis')]
    begun = f'student: {tmp_path}/start.pth; distiller: at its start'
    assert title == f'Diagnosis on 3 batches without training ({begun})'  # the loader has three
    (row,) = report.tables[titles.index(title)][2]
    assert row[0] == 'loss_kd' and float(row[2]) > 0
    advice = [text for (text,) in report.tables[titles.index('Advice')][2]]
    assert advice and not any('did not' in text or 'readings' in text for text in advice)
    assert report.exit_code() == 0


def test_a_checkpoint_of_the_same_distillation_brings_its_connectors(toy, tmp_path):
    """With connectors at their start a trained student's features look unlike the teacher's, whatever they are."""
    cfg = toy.load()
    model = MODELS.build(cfg.model)
    for parameter in model.distiller.parameters():
        parameter.data.zero_()
    known = dict(state_dict=model.architecture.state_dict(), mmkd=dict(distiller=model.distiller.saved_state()))
    torch.save(known, tmp_path / 'same.pth')
    del known['mmkd']['distiller'][next(iter(dict(model.distiller.named_parameters())))]
    torch.save(known, tmp_path / 'other.pth')
    seen = []
    for name, begun in (('same', ''), ('other', '; distiller: at its start')):
        cfg = toy.load()
        cfg.load_from = str(tmp_path / f'{name}.pth')
        report = check_config(cfg, diagnose=1)
        (table,) = [table for table in report.tables if table[0].startswith('Diagnosis')]
        assert table[0].endswith(f'(student: {tmp_path}/{name}.pth{begun})')
        seen.append(float(table[2][0][2]))
    assert seen[0] == 0 < seen[1]  # through weights of 0 no gradient passes
