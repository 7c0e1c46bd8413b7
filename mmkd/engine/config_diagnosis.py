"""A diagnosis without training: the first batches through the student as it is, and no step of the optimiser."""

import copy
import io
import time
from contextlib import redirect_stdout
from statistics import median

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmkd import compat
from mmkd.engine.config_report import ConfigReport
from mmkd.engine.diagnosis import DiagnosisProbe
from mmkd.engine.diagnosis_rules import HEADER, advise, summarise
from mmkd.models.apart import load_apart


def report_diagnosis(model: nn.Module, cfg: Config, batches: int, report: ConfigReport) -> None:
    """Compare distillation and task on some batches, every loss on, whatever its schedule; adds two tables.

    Args:
        model: an algorithm with its weights.
        cfg: its configuration; `load_from` is loaded into the student, where it is a file, and into connectors and
            self-teacher, where that file is a checkpoint of this distillation.
        batches: how many of the training loader.
        report: receives the tables.
    """
    begun = _load_start(model, cfg.get('load_from') or '')
    loader_cfg = copy.deepcopy(cfg.train_dataloader)
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader_cfg.pop('prefetch_factor', None)
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        loader = Runner.build_dataloader(loader_cfg, seed=0)
    probe = DiagnosisProbe(model)
    kept, model.distiller.schedules = model.distiller.schedules, {}
    readings, seconds = [], ([], [])
    try:
        model.train()
        for _, data in zip(range(batches), loader, strict=False):
            with torch.no_grad():
                prepared = model.data_preprocessor(data, training=True)
            seconds[0].append(_step_seconds(model, prepared))
            probe.arm()
            seconds[1].append(_step_seconds(model, prepared))
            readings.append(probe.take())
    finally:
        model.distiller.schedules = kept
        probe.close()
        model.zero_grad(set_to_none=True)
    summaries = summarise(readings)
    title = f'Diagnosis on {len(readings)} batches without training ({begun})'
    report.tables.append((title, HEADER, [one.row() for one in summaries]))
    plain, measured = (median(one) for one in seconds)
    cost = f'{plain:.3g} s for forward and backward, {measured:.3g} s with a reading: {measured / plain:.2f} times'
    report.tables.append(('Cost of a reading', ('processor time',), [(cost,)]))
    report.tables.append(('Advice', ('in words',), [(text,) for text in advise(summaries, trained=False)]))


def _load_start(model: nn.Module, start: str) -> str:
    """Load a checkpoint, and say what it gave."""
    if not start or '://' in start:
        return 'student: its initial weights, without any download'
    state = compat.load_checkpoint_file(start)
    model.architecture.load_state_dict(state.get('state_dict', state), strict=False)
    before = {name: module.saved_state() for name, module in model.apart_modules().items()}
    try:
        missing = load_apart(model, state.get('mmkd') or {})
    except RuntimeError:  # of another method: what was loaded before it failed goes back
        for name, module in model.apart_modules().items():
            module.load_saved_state(before[name])
        missing = [name for name, module in model.apart_modules().items() if any(True for _ in module.parameters())]
    return f'student: {start}' + ''.join(f'; {name}: at its start' for name in missing)


def _step_seconds(model: nn.Module, prepared: dict) -> float:
    """Processor time of a forward and a backward pass; clock time on a GPU."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    model.zero_grad(set_to_none=True)
    start = clock()
    loss, _ = model.parse_losses(model(**prepared, mode='loss'))
    loss.backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start
