"""What is looked at before an experiment's first step, so that a mistake is not said after hours of training."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmkd.testing.experiment import Experiment, refuse_other_work_dir
from mmkd.testing.final_score import FinalSplit, refuse_lost_weights
from mmkd.testing.methods import distilled_model, is_plain
from mmkd.testing.runs import ExperimentError, Run
from mmkd.testing.store import read_store
from mmkd.testing.training import known_runs


def check_experiment(
    experiment: Experiment, work_dir: Path, store: Path | None = None, final: FinalSplit | None = None, *, train: bool
) -> None:
    """Everything that can be known before the first step; nothing is written.

    Args:
        experiment: What is compared.
        work_dir: Its folder.
        store: Its committed results.
        final: Split to score on at the end.
        train: Whether what is missing is trained; otherwise only folder and store are looked at.

    Raises:
        ExperimentError: Folder or store are another experiment's or hold another arm under a name, a model cannot be
            built, or weights that the final split needs are not here.
    """
    if train or (work_dir / 'experiment.json').exists():
        refuse_other_work_dir(experiment, work_dir)
    runs = known_runs(experiment, work_dir, read_store(store, experiment) if store else None)
    if not train:
        return
    missing = [run for run in runs if run.result is None]
    if missing:
        check_arms(experiment, list(dict.fromkeys(run.arm for run in missing if run.arm in experiment.arms())))
    if final:
        refuse_lost_weights([run for run in runs if run.result is not None], final)


def check_arms(experiment: Experiment, arms: Sequence[str]) -> None:
    """Build the models of arms once, without weights: what does not fit shows before hours of training.

    Args:
        experiment: What is compared.
        arms: Names of those to build.

    Raises:
        ExperimentError: Names the arm and what is wrong with it.
    """
    teacher = dict(teacher=experiment.teacher, teacher_ckpt='not trained yet')
    init_default_scope('mmdet')
    for name in ('teacher', 'student', *arms):
        try:
            if name in ('teacher', 'student'):
                model = getattr(experiment, name)
            elif is_plain(experiment.method(name)):
                continue
            else:
                model = experiment.arms()[name].apply(
                    distilled_model(experiment.student, experiment.method(name), teacher)
                )
            with quiet():
                MODELS.build(ConfigDict(json.loads(json.dumps(model))))
        except Exception as error:  # a config can be wrong in every way that code can
            raise ExperimentError(f'{name} cannot be built: {type(error).__name__}: {error}') from error


def unmet_wishes(experiment: Experiment, runs: Sequence[Run]) -> list[str]:
    """What was asked for, but not when a finished run was trained.

    Args:
        experiment: What is compared.
        runs: Its runs.

    Returns:
        Sentences.
    """
    texts = []
    for run in runs:
        result = run.result
        if result is None:
            continue
        again = f'; to have it, delete {run.folder} (and its line in a store) and call again'
        if experiment.is_diagnosed(run) and 'diagnosis' not in result:
            texts.append(f'{run.arm}, seed {run.seed} was trained without a diagnosis{again}')
        lacking = [name for name in experiment.data.metrics.values() if name not in result['metrics']]
        if lacking:
            texts.append(f'{run.arm}, seed {run.seed} was scored without {", ".join(lacking)}{again}')
    return texts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what loaders and builders print and warn of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # other people's, such as YOLOX's of torch.meshgrid
        yield
