"""From the runs of an experiment to its results: means over seeds, paired differences, what to warn of."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmengine.device import get_device

from mmkd.testing.experiment import Experiment
from mmkd.testing.final_score import SITTING
from mmkd.testing.methods import PLAIN, TEACHER, needs_teacher
from mmkd.testing.remarks import of_one_teacher, remarks
from mmkd.testing.runs import Run
from mmkd.testing.statistics import mean_with_interval, paired_difference
from mmkd.testing.store import commands, merge_rows, run_key
from mmkd.testing.training import weights_digest
from mmkd.testing.worker import hardware_class

_KEPT = (
    'metrics',
    'curve',
    'epochs',
    'train_seconds',
    'train_cpu_seconds',
    'wall_seconds',
    'peak_memory_mb',
    'parameters',
)
_KEPT += ('initial_sha256', 'batches_sha256', 'weights_sha256', 'teacher_sha256')
_KEPT += ('diagnosis', 'resumed', 'threads', 'device', 'hardware', 'code', 'versions', 'finished', SITTING)
_OF_THE_ARM = ('method', 'file', 'options', 'settings_sha256', 'epochs', 'clock', 'as', 'ratio')


@dataclass(frozen=True)
class FinalScores:
    """Scores on a further split.

    Args:
        scores: (arm, seed) -> `metrics`: score by name, and `final_sitting`, as `mmkd.testing.final_score` gives them.
        described: `split`: its name, `images`: how many.
    """

    scores: dict[tuple[str, int], dict]
    described: dict


def collect_results(
    experiment: Experiment,
    runs: Sequence[Run],
    costs: dict[str, dict],
    *,
    command: str = '',
    store: dict | None = None,
    final: FinalScores | None = None,
) -> dict:
    """All that is known of an experiment, ready for JSON.

    Args:
        experiment: What was compared.
        runs: Its runs; the finished ones count.
        costs: Arm -> `parameters`, `gflops`, `ms`.
        command: That was run.
        store: Results of earlier sessions, whose other arms and seeds are kept.
        final: Scores on a further split that were found now.

    Returns:
        `identity`, `setting`, `arms` (arm -> means and paired differences), `unfair` (complaints), `notes`, `runs` (one
        dict a run).
    """
    rows = merge_rows(_rows(experiment, runs), store)
    if final:
        rows = _with_final_scores(rows, runs, final)
    setting = _setting(experiment, rows, [*commands(store or {}), command])
    described = final.described if final else (store or {}).get('setting', {}).get('final')
    if described:
        setting['final'] = described
    return _assembled(experiment.identity(), setting, rows, _known_costs(store) | costs)


def _assembled(identity: dict, setting: dict, rows: list[dict], costs: dict[str, dict]) -> dict:
    arms = summarise(of_one_teacher(rows), setting['metrics'], costs)
    return {'identity': identity, 'setting': setting, 'arms': arms, **remarks(rows), 'runs': rows}


def merged_results(parts: Sequence[dict]) -> dict:
    """Parts of one experiment as one, as if a single store had been gone on with.

    Args:
        parts: Stores of equal `identity`; of a run or a cost that two of them know, the first is taken.

    Returns:
        As `collect_results`.
    """
    rows: list[dict] = []
    setting: dict = {}
    costs: dict[str, dict] = {}
    for part in parts:
        rows, setting = merge_rows(part['runs'], {'runs': rows}), part['setting'] | setting
        for arm, found in _known_costs(part).items():
            costs[arm] = found | costs.get(arm, {})
    metrics = dict.fromkeys(name for part in parts for name in part['setting']['metrics'])
    setting |= _of_the_rows(rows, metrics, [text for part in parts for text in commands(part)])
    final = setting.pop('final', None)
    if final and any(name.endswith(f' {final["split"]}') for name in setting['metrics']):  # all runs have its scores
        setting['final'] = final
    return {**_assembled(parts[0]['identity'], setting, rows, costs), 'missing': []}


def _with_final_scores(rows: Sequence[dict], runs: Sequence[Run], final: FinalScores) -> list[dict]:
    """The rows with the scores that were found; a teacher of the same recipe that others trained has none."""
    teacher = weights_digest(runs[0])
    scores = {(arm, None if arm == TEACHER else seed): found for (arm, seed), found in final.scores.items()}
    merged = []
    for row in rows:
        another = row['arm'] == TEACHER and row.get('weights_sha256') != teacher
        found = {} if another else scores.get(run_key(row), {})
        merged.append({**row, **found, 'metrics': row['metrics'] | found.get('metrics', {})})
    return merged


def _known_costs(store: dict | None) -> dict[str, dict]:
    keys = ('parameters', 'gflops', 'ms')
    arms = (store or {}).get('arms', {})
    return {arm: {key: found[key] for key in keys if key in found} for arm, found in arms.items()}


def _setting(experiment: Experiment, rows: Sequence[dict], typed: Sequence[str]) -> dict:
    data, schedule = experiment.data, experiment.schedule
    return {
        'data': data.name,
        'train_images': data.counts[0],
        'val_images': data.counts[1],
        'classes': list(data.classes),
        'student': experiment.student.get('type'),
        'teacher': experiment.teacher.get('type'),
        'scale': list(schedule.scale),
        'epochs': schedule.epochs,
        'batch': schedule.batch,
        'lr': schedule.lr,
        'teacher_lr': (experiment.teacher_schedule or schedule).lr,
        'teacher_epochs': (experiment.teacher_schedule or schedule).epochs,
        'percent': data.percent,
        **_of_the_rows(rows, data.metrics.values(), typed),
    }


def _of_the_rows(rows: Sequence[dict], metrics: Iterable[str], typed: Sequence[str]) -> dict:
    """What of the setting more runs may change."""
    hardware = list(dict.fromkeys(row['hardware'] for row in rows if 'hardware' in row))
    return {
        'seeds': sorted({row['seed'] for row in rows if row['arm'] != TEACHER}),
        'metrics': _common_metrics(metrics, rows),
        'hardware': '; '.join(hardware) or hardware_class(get_device()),
        'threads': max((row.get('threads', 1) for row in rows), default=1),
        'date': _date(rows),
        'commands': [text for text in dict.fromkeys(typed) if text],
    }


def _date(rows: Sequence[dict]) -> str:
    """The day on which the last run ended, not that of the report."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return max((row['finished'][:10] for row in rows if row.get('finished')), default=today)


def _common_metrics(own: Iterable[str], rows: Sequence[dict]) -> list[str]:
    """The scores that every run of an arm has or none, those of a final split last; a lost teacher may be without."""
    rows = [row for row in rows if row['arm'] != TEACHER] or rows
    names = dict.fromkeys([*own, *(name for row in rows for name in row['metrics'])])
    return [name for name in names if _is_known(name, rows)]


def _is_known(name: str, rows: Sequence[dict]) -> bool:
    """Whether a score can be a column: a mean over a part of an arm's seeds would be compared with other means."""
    having: dict[str, set[bool]] = {}
    for row in rows:
        having.setdefault(row['arm'], set()).add(name in row['metrics'])
    return not rows or ({True} in having.values() and {True, False} not in having.values())


def _rows(experiment: Experiment, runs: Sequence[Run]) -> list[dict]:
    teacher = weights_digest(runs[0]) if runs[0].result else None
    rows = []
    for run in runs:
        result = run.result
        if result is None:
            continue
        if result is run.stored:
            rows.append(result)
            continue
        record = {'file': experiment.method(run.arm), **run.record}
        row = {
            'arm': run.arm,
            'seed': record.get('seed', run.seed),
            **{key: record[key] for key in _OF_THE_ARM if key in record},
        }
        row.update({key: result[key] for key in _KEPT if key in result})
        if run.arm == TEACHER:
            row.setdefault('weights_sha256', teacher)
        elif needs_teacher(experiment.method(run.arm)) and teacher:
            row.setdefault('teacher_sha256', teacher)  # runs of an older mmkd: the one teacher of their folder
        rows.append(row)
    return rows


def summarise(rows: Sequence[dict], metrics: Sequence[str], costs: dict[str, dict]) -> dict[str, dict]:
    """Means over seeds, and paired differences to plain.

    Args:
        rows: One dict a run: `arm`, `seed`, `metrics`, `train_seconds`, `peak_memory_mb`.
        metrics: Names of the scores.
        costs: Arm -> `parameters`, `gflops`, `ms`.

    Returns:
        Arm -> dict; the teacher first, the others in the order of the runs.
    """
    arms: dict[str, dict] = {}
    plain = [row for row in rows if row['arm'] == PLAIN]
    for arm in dict.fromkeys(row['arm'] for row in rows):
        mine = [row for row in rows if row['arm'] == arm]
        summary: dict = {'seeds': [row['seed'] for row in mine]}
        for name in metrics:
            scores = {row['seed']: row['metrics'][name] for row in mine if name in row['metrics']}
            if not scores:
                continue
            summary[name] = mean_with_interval(list(scores.values())).as_dict()
            base = {row['seed']: row['metrics'][name] for row in plain}
            if arm not in (PLAIN, TEACHER) and set(scores) & set(base):
                summary[f'{name} - plain'] = paired_difference(scores, base).as_dict()
        summary['train_seconds'] = mean_with_interval([row['train_seconds'] for row in mine]).mean
        busy = [row['train_cpu_seconds'] for row in mine if 'train_cpu_seconds' in row]
        summary['train_cpu_seconds'] = mean_with_interval(busy).mean if busy else None
        summary['peak_memory_mb'] = max(row['peak_memory_mb'] for row in mine)
        known = {'parameters': mine[0]['parameters']} if 'parameters' in mine[0] else {}
        arms[arm] = {**summary, **known, **costs.get(arm, {})}
    return arms
