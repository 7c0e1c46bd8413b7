"""Everything that can be wrong with a distillation, found on one image before training."""

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkd import compat
from mmkd.engine.config_diagnosis import report_diagnosis
from mmkd.engine.config_report import ConfigReport
from mmkd.engine.config_rules import WARNINGS
from mmkd.engine.config_step import measuring_device, report_step
from mmkd.engine.config_wiring import report_coverage, report_sides, report_start, report_wiring
from mmkd.engine.explain import explain
from mmkd.engine.preflight import find_problems
from mmkd.engine.preflight_data import classes_numbered_otherwise
from mmkd.models.apart import own_randomness


def check_config(cfg: Config, *, data: bool = True, weights: bool = True, diagnose: int = 0) -> ConfigReport:
    """Build both networks, run one image, and report.

    Args:
        cfg: configuration of a training.
        data: look for the data sets and run the first image; False stops behind the wiring.
        weights: fetch the teacher's weights, if need be, and see whether they fit.
        diagnose: compare the distillation with the task on so many batches.

    Returns:
        Tables, warnings and problems; nothing is raised for a mistake in the configuration, and nothing is written.
    """
    report = ConfigReport()
    with _quiet(), DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        report.problems += find_problems(cfg, data=data, weights=weights)
        report.warnings += [text for rule in WARNINGS for text in rule(cfg)]
        if report.problems:
            return report
        report.warnings += classes_numbered_otherwise(cfg) if data else ()
        with own_randomness():
            model = MODELS.build(copy.deepcopy(cfg.model))
            if not hasattr(model, 'distiller'):
                report.warnings.append('This configuration distils nothing.')
                return report
            _run(model, cfg, report, data=data, weights=weights, diagnose=diagnose)
    return report


def _run(model: nn.Module, cfg: Config, report: ConfigReport, *, data: bool, weights: bool, diagnose: int) -> None:
    report_wiring(model, report)
    if hasattr(model, '_teacher'):
        report_sides(model, cfg, report)
        if weights:
            _check_weights(model, report)
        else:
            model._teacher.loaded = True
    _check_start(model, cfg, report)
    if not data or report.problems:
        return
    try:
        _begin_counting()
        initialise_without_download(model)
        model.to(measuring_device())
        report_step(model, cfg, report)
        if diagnose:
            report_diagnosis(model, cfg, diagnose, report)
    except Exception as error:  # of the detector, the data or the method: whatever would end the training
        if os.environ.get('MMKD_TRACEBACK') == '1':
            raise
        report.problems.append(f'The first training step fails ({type(error).__name__}): {explain(error)}')


def _begin_counting() -> None:
    """What a Runner tells the parts that change with the iteration, such as `BatchSyncRandomResize`."""
    hub = MessageHub.get_current_instance()
    for name in ('iter', 'epoch'):
        if hub.get_info(name) is None:
            hub.update_info(name, 0, resumed=False)


def _check_weights(model: nn.Module, report: ConfigReport) -> None:
    try:
        path = compat.fetch_checkpoint(model._teacher.checkpoint, progress=True)
        model._teacher.load()
        if path is not None:
            report_coverage(model, compat.load_checkpoint_file(str(path)), report)
    except Exception as error:
        report.problems.append(f'teacher_ckpt: {explain(error)}')


def _check_start(model: nn.Module, cfg: Config, report: ConfigReport) -> None:
    name = cfg.get('load_from')
    if name and '://' not in name:
        report_start(model, compat.load_checkpoint_file(str(compat.fetch_checkpoint(name))), name, report)


def initialise_without_download(model: nn.Module) -> None:
    """Initial weights without a download: what is pretrained starts at random, unless its file is on this machine."""
    for module in model.modules():
        module_cfg: Any = getattr(module, 'init_cfg', None)
        parts = module_cfg if isinstance(module_cfg, list) else [module_cfg]
        if any(isinstance(part, dict) and _is_elsewhere(part) for part in parts):
            module.init_cfg = None
    model.init_weights()


def _is_elsewhere(part: dict) -> bool:
    return part.get('type') == 'Pretrained' and not Path(str(part.get('checkpoint'))).is_file()


@contextmanager
def _quiet() -> Iterator[None]:
    """The log of initialisation and loading would hide the tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
