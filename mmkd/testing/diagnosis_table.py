"""What the distillations of an experiment did, from the readings of `mmkd.DiagnosisHook` (`--diagnose`)."""

import math

from mmkd.engine.diagnosis_rules import HEADER, Summary


def diagnosis_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """One row a loss of every run that was diagnosed.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        Headings; rows, none where nothing was diagnosed. `docs/diagnosis.md` explains the columns.
    """
    rows = [
        [f'{run["arm"]}, seed {run["seed"]}', *_summary(found).row()]
        for run in results['runs']
        for found in run.get('diagnosis', [])
    ]
    return ['run', *HEADER], rows


def _summary(found: dict) -> Summary:
    """JSON has no NaN and no tuples."""

    def number(value: float | list | None) -> float | tuple:
        if isinstance(value, list):
            return tuple(map(number, value))
        return math.nan if value is None else value

    return Summary(**{key: value if key == 'name' else number(value) for key, value in found.items()})
