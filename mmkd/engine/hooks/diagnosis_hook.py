"""Why is there no gain? Measures a distillation while it trains, and says at the end what the numbers suggest."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmkd.engine.detector_classes import num_classes
from mmkd.engine.diagnosis import DiagnosisProbe, Reading
from mmkd.engine.diagnosis_rules import advise, summarise, table_text
from mmkd.engine.small_evaluation import evaluate_on, first_images
from mmkd.registry import HOOKS

KEY = 'mmkd_diagnosis'  # of a checkpoint: the readings up to then


@HOOKS.register_module()
class DiagnosisHook(Hook):
    """Compares the distillation with the task, in gradients and features, every `interval` iterations.

    For each distillation loss: the norm of its gradient in backbone and neck over that of the task's, the cosine
    between both, and the similarity (linear CKA) of student and teacher features, as the loss compares them and before
    the connector. The training is not touched: the weights are the same to the last bit with and without this hook.
    Measured in the training step's own graph, in every process for its own images; the mean over processes is kept.

    Each reading goes to the log, to the visualiser (`diagnosis/...`) and to `diagnosis.jsonl` in the log folder of the
    run; table and advice to the log and to `diagnosis.json` at the end. `docs/diagnosis.md` explains both.

    Args:
        interval: iterations between two readings; the first and the last iteration are always read.
        images: on so many of the first validation images teacher and student are scored at the end; 0 leaves it out.

    Raises:
        ValueError: `interval` is below 1 or `images` is negative.
    """

    priority = 'LOW'

    def __init__(self, *, interval: int = 50, images: int = 32) -> None:
        if interval < 1 or images < 0:
            raise ValueError(f'interval must be >= 1 and images >= 0, got {interval} and {images}.')
        self.interval, self.images = interval, images
        self.readings: list[Reading] = []
        self._probe: DiagnosisProbe | None = None

    @staticmethod
    def _model(runner: Runner) -> nn.Module:
        return getattr(runner.model, 'module', runner.model)

    def before_train(self, runner: Runner) -> None:
        """Start listening.

        Raises:
            ValueError: the model distils nothing.
        """
        wrapper = runner.optim_wrapper
        scaler = getattr(wrapper, 'loss_scaler', None)
        self._probe = DiagnosisProbe(self._model(runner), scaler.get_scale if scaler is not None else lambda: 1.0)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the readings, so that the table of a resumed training is of all of it."""
        checkpoint[KEY] = [asdict(reading) for reading in self.readings]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up the readings of a training that is resumed; weights alone (`load_from`) change nothing here."""
        if runner._resume:
            self.readings = [Reading.from_dict(one) for one in checkpoint.get(KEY, [])]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Arm the probe where a reading is due."""
        if runner.iter % self.interval == 0 or runner.iter + 1 == runner.max_iters:
            self._probe.arm()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Write the reading down."""
        reading = self._probe.take()
        if reading is None:
            return
        self.readings.append(reading)
        if is_main_process():
            self._write(runner, reading)

    def after_train(self, runner: Runner) -> None:
        """Stop listening; table and advice, which are written before the networks are scored."""
        self._probe.close()
        if self.readings and is_main_process():
            self._conclude(runner, None)
        scores = None
        try:
            scores = self._scores(runner)
        except Exception as error:  # of a network or metric: the training is done, and its diagnosis stays
            text = f'Teacher and student could not be scored ({type(error).__name__}: {error}).'
            print_log(text, logger='current', level=30)
        if self.readings and is_main_process():
            print_log(self._conclude(runner, scores), logger='current')

    def _conclude(self, runner: Runner, scores: tuple[str, float, float] | None) -> str:
        """Write `diagnosis.json`; returns the same as text."""
        summaries = summarise(self.readings)
        advice = advise(summaries, scores)
        content = dict(losses=[asdict(one) for one in summaries], scores=scores, advice=advice)
        (Path(runner.log_dir) / 'diagnosis.json').write_text(json.dumps(_finite(content), indent=1))
        listed = '\n'.join(f'- {text}' for text in advice)
        return f'Diagnosis of {len(self.readings)} readings\n\n{table_text(summaries)}\n{listed}\n'

    def _write(self, runner: Runner, reading: Reading) -> None:
        line = dict(iter=runner.iter + 1, epoch=runner.epoch + 1, **asdict(reading))
        for name in reading.losses:
            line['losses'][name]['share'] = reading.share(name)
        line = _finite(line)
        with (Path(runner.log_dir) / 'diagnosis.jsonl').open('a') as file:
            file.write(json.dumps(line) + '\n')
        shown = {
            f'{name}/{key}': value
            for name, numbers in line['losses'].items()
            for key, value in numbers.items()
            if key in ('share', 'cosine', 'similarity', 'before_connector') and value is not None
        }
        text = ', '.join(f'{key} {value:.3g}' for key, value in shown.items())
        print_log(f'diagnosis at iteration {runner.iter + 1}: {text}', logger='current')
        runner.visualizer.add_scalars({f'diagnosis/{key}': v for key, v in shown.items()}, step=runner.iter + 1)

    def _scores(self, runner: Runner) -> tuple[str, float, float] | None:
        """The first metric of teacher and student on the same images; every process takes part."""
        model, cfg = self._model(runner), runner.cfg
        if not self.images or not hasattr(model, '_teacher') or not cfg.get('val_evaluator'):
            return None
        loader = first_images(runner, self.images)
        if not (loader.dataset.knows(num_classes(model.teacher)) and loader.dataset.numbers_as(model._teacher.source)):
            return None
        averaged = next((hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)), model)
        networks = model.teacher, averaged.architecture  # with EMA the weights that are validated and saved
        teacher, student = (evaluate_on(runner, net, loader) for net in networks)
        name = next((name for name in teacher.known if name in student.metrics), None)
        return None if name is None else (name, teacher.metrics[name], student.metrics[name])


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
