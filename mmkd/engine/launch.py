"""What `tools/train.py` and `tools/test.py` do after parsing their arguments."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmkd import compat, releases
from mmkd.datasets.data_root import check_reached, move_data_root
from mmkd.engine import preflight
from mmkd.engine.explain import explain
from mmkd.engine.student_config import is_distillation, student_config
from mmkd.engine.work_dir import CHECKPOINTS, alone_in_work_dir
from mmkd.models.algorithms.model_config import find_config, read_config
from mmkd.models.algorithms.teacher_options import TeacherOptions


def load_config(name: str, options: dict[str, Any] | None = None) -> Config:
    """Read a configuration by path or `pkg::name`, with overrides; `mmkd::` and `mmdet::` are understood.

    Raises:
        FileNotFoundError: the file does not exist; the message names the nearest ones.
        ValueError: the file is no valid configuration, an override names what is not there, or `data_root` reaches no
            data set.
    """
    compat.enable_config_prefix()
    path = find_config(name)
    try:
        cfg = read_config(path)
    except Exception as error:  # a configuration is Python, so its mistakes are of every kind
        raise ValueError(f'{path} is no valid configuration ({type(error).__name__}: {explain(error)}).') from error
    if options:
        preflight.check_options(cfg, options)
        if 'data_root' in options:
            move_data_root(cfg, options['data_root'])
        _merge_options(cfg, options)
        if 'data_root' in options:
            check_reached(cfg, str(options['data_root']), chosen=options)
    if 'model' not in cfg:
        raise ValueError(f'{name} defines no model; it is a base to inherit from, not a configuration to run.')
    return cfg


def _merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Apply overrides; the top-level `distiller`, which only serves inheritance, follows one of `model.distiller`."""
    _make_room_for_teacher_options(cfg, options)
    agreed = 'distiller' in cfg and cfg.distiller == (cfg.get('model') or {}).get('distiller')
    cfg.merge_from_dict(options)
    if agreed and not any(key.split('.')[0] == 'distiller' for key in options):
        cfg.distiller = copy.deepcopy(cfg.model.get('distiller'))


def _make_room_for_teacher_options(cfg: Config, options: dict[str, Any]) -> None:
    """`model.teacher.channels_last=True` also where the configuration names its teacher without options."""
    names = {field.name for field in fields(TeacherOptions)}
    wanted = any(key.startswith('model.teacher.') and key.split('.')[2] in names for key in options)
    teacher = cfg.model.get('teacher') if wanted and 'model' in cfg else None
    if teacher is not None and (isinstance(teacher, str) or 'config' not in teacher):
        cfg.model.teacher = dict(config=teacher)


def prepare_training(
    cfg: Config,
    *,
    config_name: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
) -> Config:
    """Apply MMDetection's training options to a configuration.

    Args:
        cfg: the configuration; changed in place.
        config_name: path or name it was read from; names the default work directory.
        work_dir: where checkpoints and logs go.
        resume: `'auto'` for the latest checkpoint of the work directory (its first start where there is none yet), or a
            checkpoint's path.
        amp: automatic mixed precision.
        auto_scale_lr: scale the learning rate with the images of a step, those of accumulated forwards included.
        launcher: `none`, `pytorch`, `slurm` or `mpi`.

    Raises:
        ValueError: the configuration does not say what the option needs.
    """
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config_name.split('::')[-1]).stem)
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the configuration.')
        cfg.auto_scale_lr.enable = True
        _count_accumulated_images(cfg)
    if resume == 'auto' and not _has_checkpoint(Path(cfg.work_dir)):
        print_log(f'{cfg.work_dir} holds no checkpoint yet: the training starts, {_start(cfg)}.', logger='current')
    elif resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    return cfg


def _count_accumulated_images(cfg: Config) -> None:
    """MMEngine's scaling sees the images of one forward; a step of `accumulative_counts` of them sees more."""
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    if counts > 1 and cfg.auto_scale_lr.get('accumulative_counts', 1) != counts:
        cfg.auto_scale_lr.base_batch_size /= counts
        cfg.auto_scale_lr.accumulative_counts = counts  # for who reads the configuration of the run, or runs it again


def _has_checkpoint(work_dir: Path) -> bool:
    return any(path for pattern in CHECKPOINTS for path in work_dir.glob(pattern))


def _start(cfg: Config) -> str:
    return f'from {cfg.load_from}' if cfg.get('load_from') else 'from its beginning'


def build_runner(cfg: Config) -> Runner:
    """The configuration's runner, also for several processes without a GPU."""
    compat.init_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def train(cfg: Config) -> Runner:
    """Check what can be checked before long work, then train; returns the runner behind it.

    Raises:
        mmkd.engine.preflight.PreflightError: the first mistakes found, all in one message.
        mmkd.engine.work_dir.WorkDirError: another training is working in the work directory.
    """
    releases.check_ops()
    releases.check_versions()
    preflight.check_training(cfg)
    with alone_in_work_dir(cfg):
        runner = build_runner(cfg)
        try:
            runner.train()
        except Exception as error:
            if runner.iter > 0 and not getattr(error, 'user_mistake', False):  # hours may lie behind it
                runner.logger.error('The training ended with an error.', exc_info=True)
                error.show_traceback = True
            raise
    return runner


def prepare_test(cfg: Config, checkpoint: str, *, work_dir: str | None, config_name: str, launcher: str) -> Config:
    """The plain student's configuration for a test of `checkpoint`; neither teacher nor method is needed."""
    stem = Path(config_name.split('::')[-1]).stem
    if is_distillation(cfg):
        cfg = student_config(cfg)
    cfg.experiment_name = cfg.get('experiment_name') or stem
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / stem)
    cfg.load_from = checkpoint
    cfg.resume = False
    return cfg
