"""Finished runs on one more split, which nothing was chosen on: each once, behind its training.

The scores stand beside those of the validation split, under names such as `AP test`. The sitting stands there too: an
experiment may be gone on with when its first test scores are known, and a reader must see that.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS

from mmkd.testing.detection_data import DetectionData
from mmkd.testing.measure import collate, load_student
from mmkd.testing.runs import ExperimentError, Run, write_json

SITTING = 'final_sitting'  # in the record of a run: when the call that scored it on the further split began to do so


@dataclass(frozen=True)
class FinalSplit:
    """A split to score on at the end.

    Args:
        name: Its name, such as `test`.
        data: Data set whose `val` it is.
    """

    name: str
    data: DetectionData

    def column(self, metric: str) -> str:
        """Name of a score of this split."""
        return f'{metric} {self.name}'

    def described(self) -> dict:
        """What a table says of it."""
        return {'split': self.name, 'images': self.data.counts[1]}


def final_scores(runs: Sequence[Run], final: FinalSplit) -> dict[tuple[str, int], dict]:
    """Score every run that was not scored on the split yet, also by a call that was interrupted behind it.

    Args:
        runs: All runs of an experiment.
        final: The split.

    Returns:
        (arm, seed) -> `metrics`: score by name, `final_sitting`: when, UTC (not of runs of earlier releases).

    Raises:
        ExperimentError: Where a run is not finished, or its weights are not on this machine; nothing was scored then.
    """
    unfinished = [f'{run.arm}, seed {run.seed}' for run in runs if run.result is None]
    if unfinished:
        raise ExperimentError(
            f'--final-split {final.name} is for the end: {len(unfinished)} runs are not finished ({unfinished[0]} ...)'
        )
    refuse_lost_weights(runs, final)
    columns = _columns(final)
    found = {(run.arm, run.seed): _known(run, columns) for run in runs}
    now = datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d %H:%M')
    for run in _open(runs, final):
        mine = score(run.folder / 'config.py', run.checkpoint, final)
        found[run.arm, run.seed] = {'metrics': mine, SITTING: now}
        result = run.result
        if result is not run.stored:
            write_json(run.folder / 'result.json', {**result, 'metrics': result['metrics'] | mine, SITTING: now})
    return found


def refuse_lost_weights(runs: Sequence[Run], final: FinalSplit) -> None:
    """Finished runs must have their weights here, or have been scored on the split.

    Args:
        runs: Finished runs.
        final: The split.

    Raises:
        ExperimentError: Names the runs.
    """
    lost = [f'{run.arm}, seed {run.seed}' for run in _open(runs, final) if run.checkpoint is None]
    if lost:
        raise ExperimentError(f'--final-split {final.name}: no weights on this machine of {"; ".join(lost)}')


def _open(runs: Sequence[Run], final: FinalSplit) -> list[Run]:
    columns = _columns(final)
    return [run for run in runs if columns[0] not in _known(run, columns)['metrics']]


def _columns(final: FinalSplit) -> list[str]:
    return [final.column(name) for name in final.data.metrics.values()]


def _known(run: Run, columns: Sequence[str]) -> dict:
    known = (run.stored or {}) | run.result
    metrics = (run.stored or {}).get('metrics', {}) | run.result['metrics']
    scores = {name: metrics[name] for name in columns if name in metrics}
    return {'metrics': scores, **({SITTING: known[SITTING]} if scores and SITTING in known else {})}


def score(run_config: Path, checkpoint: str, final: FinalSplit) -> dict[str, float]:
    """Score a trained detector on the split, in the pipeline that its run was scored in.

    Args:
        run_config: `config.py` of the run.
        checkpoint: Its weights.
        final: The split.

    Returns:
        Score by name, such as `AP test`.
    """
    model = load_student(run_config, checkpoint)
    if torch.cuda.is_available():
        model.cuda()
    pipeline = Config.fromfile(run_config).val_dataloader.dataset.pipeline
    dataset = DATASETS.build(dict(final.data.val, pipeline=pipeline))
    evaluator = Evaluator(dict(final.data.evaluator))
    evaluator.dataset_meta = dataset.metainfo
    with torch.no_grad():
        for index in range(len(dataset)):
            batch = collate(dataset[index])
            evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    found = evaluator.evaluate(len(dataset))
    # `CocoMetric` gives nothing where nothing was detected
    return {final.column(name): float(found[key]) if found else 0.0 for key, name in final.data.metrics.items()}
