"""`plain-time`: plain training for as long as distillation takes, since a distilled step costs more than a plain one.

Equal epochs flatter distillation where the plain student would have used the time as well. The epochs of `plain-time`
are those of the others times r, rounded, where r is the mean over all distilled arms of (their training time / that of
plain), in the runs of the first seed: CPU time where they were trained on a CPU (clock time of a shared machine says
little), clock time on a GPU. The whole schedule is stretched: the cosine ends at the new last epoch. Scoring and the
training of the teacher are not counted. `NAME=plain-time,as=ARM` takes the time of that arm alone. Once a run of the
arm has begun, its epochs stay as they are, whatever arms are added later.
"""

from collections.abc import Sequence

from mmkd.testing.experiment import Experiment
from mmkd.testing.methods import PLAIN, PLAIN_TIME, is_plain
from mmkd.testing.runs import Run


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
        ValueError: For another option than `as`, an arm that is not there, or nothing to take the time of.
    """
    arms = experiment.arms()
    distilled = [name for name in arms if not is_plain(experiment.method(name))]
    options = dict(arms[arm].options)
    wanted = options.pop('as', None)
    if options:
        raise ValueError(f'{arm}: {PLAIN_TIME} has one option, as=ARM; got {", ".join(options)}')
    if wanted is not None and wanted not in distilled:
        raise ValueError(f'{arm}: as={wanted} is none of the distilled arms {distilled}')
    if PLAIN not in arms or not distilled:
        raise ValueError(f'{arm}: {PLAIN_TIME} needs the arm {PLAIN} and a distilled one beside it')
    return [wanted] if wanted else distilled


def needed_runs(experiment: Experiment, run: Run, runs: Sequence[Run]) -> list[Run]:
    """The runs that must be finished before the epochs of a stretched run are known.

    Args:
        experiment: What is compared.
        run: A stretched run.
        runs: All runs.

    Returns:
        None, where the epochs are fixed already.
    """
    if _fixed(experiment, run, runs):
        return []
    wanted = {PLAIN, *reference_arms(experiment, run.arm)}
    return [one for one in runs if one.arm in wanted and one.seed == experiment.seeds[0]]


def time_budget(experiment: Experiment, run: Run, runs: Sequence[Run]) -> dict:
    """How long a stretched run is trained.

    Args:
        experiment: What is compared.
        run: The run.
        runs: All runs; those that are needed are finished.

    Returns:
        `epochs`, `clock` (`CPU` or `wall`), `as`: the arms, `ratio`: of their time to that of plain.
    """
    fixed = _fixed(experiment, run, runs)
    if fixed:
        return fixed
    needed = {one.arm: one.result or {} for one in needed_runs(experiment, run, runs)}
    on_cpu = all(result.get('device', 'cpu') == 'cpu' and result.get('train_cpu_seconds') for result in needed.values())
    key = 'train_cpu_seconds' if on_cpu else 'train_seconds'
    plain = needed.pop(PLAIN)[key]
    ratio = sum(result[key] for result in needed.values()) / len(needed) / plain
    epochs = max(experiment.schedule.epochs, round(experiment.schedule.epochs * ratio))
    return {'epochs': epochs, 'clock': 'CPU' if on_cpu else 'wall', 'as': list(needed), 'ratio': round(ratio, 3)}


def _fixed(experiment: Experiment, run: Run, runs: Sequence[Run]) -> dict | None:
    """The budget that an earlier run of the same arm, with the same options, was given."""
    options = [list(pair) for pair in experiment.arms()[run.arm].options]
    for one in runs:
        found = (one.stored or one.record) if one.arm == run.arm else {}
        if 'epochs' in found and 'ratio' in found and found.get('options', []) == options:
            return {key: found[key] for key in ('epochs', 'clock', 'as', 'ratio')}
    return None


def budget_note(rows: Sequence[dict]) -> str:
    """What a table says of its stretched arms.

    Args:
        rows: One dict a run.

    Returns:
        A sentence for each; empty without any.
    """
    notes = {}
    for row in rows:
        if 'ratio' in row:
            notes[row['arm']] = (
                f'{row["arm"]}: plain with its schedule stretched to {row["epochs"]} epochs, {row["ratio"]:.2f} times '
                f'the time of plain, which is the mean training time ({row["clock"]}) of {", ".join(row["as"])}.'
            )
    return ' '.join(notes.values())
