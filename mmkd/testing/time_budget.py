"""`plain-time`: plain training for as long as distillation takes, since a distilled step costs more than a plain one.

Equal epochs flatter distillation where the plain student would have used the time as well. The epochs of `plain-time`
are those of the others times r, rounded, where r is the mean over all distilled arms of (their training time / that of
plain), in the runs of the first seed: CPU time where they were trained on a CPU (clock time of a shared machine says
little), clock time on a GPU. The whole schedule is stretched: the cosine ends at the new last epoch. Scoring and the
training of the teacher are not counted. `NAME=plain-time,as=ARM` takes the time of that arm alone. Once a run of the
arm has begun, its epochs stay as they are, whatever arms are added later.
"""

from collections.abc import Sequence
from pathlib import Path

from mmkd.testing.experiment import Experiment
from mmkd.testing.methods import PLAIN, PLAIN_TIME, is_plain
from mmkd.testing.runs import Run, read_json


def is_stretched(experiment: Experiment, arm: str) -> bool:
    """Whether an arm's schedule follows from the time that others took."""
    return experiment.method(arm) == PLAIN_TIME


def reference_arms(experiment: Experiment, arm: str) -> list[str]:
    """The arms whose time a stretched arm gets.

    Args:
        experiment: What is compared.
        arm: Name of a stretched arm.

    Returns:
        Names.

    Raises:
        ValueError: For another option than `as` and `lr`, an arm that is not there, or nothing to take the time of.
    """
    arms = experiment.arms()
    distilled = [name for name in arms if not is_plain(experiment.method(name))]
    options = dict(arms[arm].model_options)
    wanted = options.pop('as', None)
    if options:
        raise ValueError(f'{arm}: {PLAIN_TIME} has the options as=ARM and lr=RATE; got {", ".join(options)}')
    if wanted is not None and wanted not in distilled:
        raise ValueError(f'{arm}: as={wanted} is none of the distilled arms {distilled}')
    if PLAIN not in arms or not distilled:
        raise ValueError(f'{arm}: {PLAIN_TIME} needs the arm {PLAIN} and a distilled one beside it')
    return [wanted] if wanted else distilled


def needed_runs(experiment: Experiment, run: Run, runs: Sequence[Run], known: Sequence[dict] = ()) -> list[Run]:
    """The runs that must be finished before the epochs of a stretched run are known.

    Args:
        experiment: What is compared.
        run: A stretched run.
        runs: All runs.
        known: As `known_budgets` finds them.

    Returns:
        None, where the epochs are fixed already.
    """
    if _fixed(experiment, run, runs, known):
        return []
    wanted = {PLAIN, *reference_arms(experiment, run.arm)}
    return [one for one in runs if one.arm in wanted and one.seed == experiment.seeds[0]]


def time_budget(experiment: Experiment, run: Run, runs: Sequence[Run], known: Sequence[dict] = ()) -> dict:
    """How long a stretched run is trained.

    Args:
        experiment: What is compared.
        run: The run.
        runs: All runs; those that are needed are finished.
        known: As `known_budgets` finds them.

    Returns:
        `epochs`, `clock` (`CPU` or `wall`), `as`: the arms, `ratio`: of their time to that of plain.
    """
    fixed = _fixed(experiment, run, runs, known)
    if fixed:
        return fixed
    needed = {one.arm: one.result or {} for one in needed_runs(experiment, run, runs)}
    on_cpu = all(result.get('device', 'cpu') == 'cpu' and result.get('train_cpu_seconds') for result in needed.values())
    key = 'train_cpu_seconds' if on_cpu else 'train_seconds'
    plain = needed.pop(PLAIN)[key]
    ratio = sum(result[key] for result in needed.values()) / len(needed) / plain
    epochs = max(experiment.schedule.epochs, round(experiment.schedule.epochs * ratio))
    return {'epochs': epochs, 'clock': 'CPU' if on_cpu else 'wall', 'as': list(needed), 'ratio': round(ratio, 3)}


def known_budgets(work_dir: Path, store: dict | None) -> list[dict]:
    """The budgets of stretched runs of earlier calls, also of seeds that this one does not name.

    Args:
        work_dir: Of the experiment.
        store: Results of earlier sessions.

    Returns:
        Rows of the store and records of runs in the folder, those of the store first.
    """
    records = [read_json(file) or {} for file in sorted(work_dir.glob('*/seed*/arm.json'))]
    found = [*(store or {}).get('runs', []), *(dict(record, arm=record.get('name')) for record in records)]
    return [one for one in found if 'epochs' in one and 'ratio' in one]


def _fixed(experiment: Experiment, run: Run, runs: Sequence[Run], known: Sequence[dict]) -> dict | None:
    """The budget that an earlier run of the same arm, with the same options, was given."""
    options = [list(pair) for pair in experiment.arms()[run.arm].options]
    own = [dict(one.stored or one.record, arm=one.arm) for one in runs]
    for found in [*known, *own]:
        same = found['arm'] == run.arm and found.get('options', []) == options
        if same and 'epochs' in found and 'ratio' in found:
            return {key: found[key] for key in ('epochs', 'clock', 'as', 'ratio')}
    return None


def budget_note(rows: Sequence[dict]) -> str:
    """What a table says of its stretched arms.

    Args:
        rows: One dict a run.

    Returns:
        A sentence for each, and for each length where runs of one arm were given different ones; empty without any.
    """
    notes = {}
    for row in rows:
        if 'ratio' in row:
            notes[row['arm'], row['epochs']] = (
                f'{row["arm"]}: plain with its schedule stretched to {row["epochs"]} epochs, {row["ratio"]:.2f} times '
                f'the time of plain, which is the mean training time ({row["clock"]}) of {", ".join(row["as"])}.'
            )
    return ' '.join(notes.values())
