"""Results in one small file that is committed: what is in it is done, on whatever machine a later session goes on.

A store is the `results.json` of an experiment with one line a run. It knows its experiment (`identity`), what each run
was trained with, and the digest of the teacher's weights that a run learned from. Checkpoints are not in it: a teacher
is trained again where a missing run needs one, and runs that learned from different teachers are marked.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmkd.testing.experiment import Experiment, differences, refuse_other_arm
from mmkd.testing.methods import TEACHER
from mmkd.testing.runs import ExperimentError, Run, read_json, write_text


def read_store(path: Path, experiment: Experiment) -> dict | None:
    """A store of this experiment.

    Args:
        path: File.
        experiment: That is to be gone on with.

    Returns:
        Its content; None where the file does not exist yet.

    Raises:
        ExperimentError: Where the file is no store, or another experiment's; it is not changed.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise ExperimentError(f'--store {path}: there is no folder {path.parent}')
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get('runs'), list):
        raise ExperimentError(f'--store {path} holds no results; nothing was changed.')
    if 'identity' not in content:
        raise ExperimentError(
            f'--store {path} was written by an mmkd that could not go on from it; choose another file.'
        )
    differing = differences(experiment.identity(), content['identity'])
    if differing:
        raise ExperimentError(
            f'--store {path} holds another experiment: it differs in {", ".join(differing)}. Nothing was changed; '
            'choose another file, or the options of that experiment.'
        )
    return content


def attach_store(experiment: Experiment, runs: Sequence[Run], store: dict) -> None:
    """Tell the runs what a store knows of them.

    Args:
        experiment: What is compared.
        runs: All runs.
        store: Its content.

    Raises:
        ExperimentError: Where a name means another arm there.
    """
    for run in runs:
        rows = [row for row in store['runs'] if row['arm'] == run.arm]
        if run.arm != TEACHER:
            rows = [row for row in rows if row['seed'] == run.seed]
        local = (read_json(run.folder / 'result.json') or {}).get('finished')
        same = [row for row in rows if row.get('finished') == local]
        if rows:
            run.stored = (same or rows)[0]
            refuse_other_arm(experiment, run, run.stored, 'the store')


def commands(results: dict) -> list[str]:
    """The commands that results were made by, one after another; earlier releases kept the last alone."""
    setting = results.get('setting', {})
    return [text for text in setting.get('commands', [setting.get('command')]) if text]


def run_key(row: Mapping) -> tuple[str, int | None]:
    """What a run is known by: arm and seed; the arm alone for the teacher, which is one for all seeds."""
    return row['arm'], None if row['arm'] == TEACHER else row['seed']


def merge_rows(rows: Sequence[dict], store: dict | None) -> list[dict]:
    """Rows of now and of a store.

    Args:
        rows: Of the runs of now.
        store: Content of a store.

    Returns:
        The union, the store's first where both know a run; a teacher that was trained again is a row beside the first.
    """
    merged: dict[tuple, dict] = {}
    for row in [*(store or {}).get('runs', []), *rows]:
        merged.setdefault((run_key(row), row.get('weights_sha256') if row['arm'] == TEACHER else None), row)
    order = {arm: place for place, arm in enumerate(dict.fromkeys(row['arm'] for row in merged.values()))}
    return sorted(merged.values(), key=lambda row: (row['arm'] != TEACHER, order[row['arm']], row['seed']))


def write_store(path: Path, results: dict) -> None:
    """Write a store.

    Args:
        path: File; its folder is made.
        results: Of `mmkd.testing.results.collect_results`; `pictures` and `stamp` belong to this machine and are left
            out.
    """
    kept = {key: value for key, value in results.items() if key not in ('pictures', 'stamp')}
    lines = [f' {json.dumps(key)}: {_block(value)}' for key, value in kept.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def _block(value: object) -> str:
    """One line for each part, so that a change of one run is a change of one line."""
    if isinstance(value, list) and value:
        return '[\n' + ',\n'.join(f'  {json.dumps(part)}' for part in value) + '\n ]'
    if isinstance(value, dict) and value:
        return '{\n' + ',\n'.join(f'  {json.dumps(key)}: {json.dumps(part)}' for key, part in value.items()) + '\n }'
    return json.dumps(value)
