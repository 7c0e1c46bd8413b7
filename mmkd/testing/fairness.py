"""Whether the runs of an experiment can be compared: from rows of results, wherever they were trained."""

from collections import Counter
from collections.abc import Sequence

from mmkd.testing.methods import PLAIN, PLAIN_TIME, TEACHER
from mmkd.testing.runs import Run


def unfair_runs(runs: Sequence[Run]) -> list[str]:
    """As `unfair_rows`, for the finished ones of these runs."""
    rows = [
        {'file': run.record.get('file'), **run.result, 'arm': run.arm, 'seed': run.seed} for run in runs if run.result
    ]
    return unfair_rows(rows)


def unfair_rows(rows: Sequence[dict]) -> list[str]:
    """Runs that did not start from the same student, or were not fed the same batches, as plain with their seed.

    Args:
        rows: One dict a run: `arm`, `seed`, `initial_sha256`, `batches_sha256`; `file`: what it was trained with.

    Returns:
        One complaint a run and reason. `plain-time` sees more batches on purpose: only its start is compared. Without
        plain the first arm of the seed takes its place.
    """
    complaints = []
    for row, partner in _pairs(rows):
        for key, what in (('initial_sha256', 'initial student'), ('batches_sha256', 'batches')):
            stretched = row.get('file') == PLAIN_TIME and key == 'batches_sha256'
            if row.get(key) != partner.get(key) and not stretched:
                complaints.append(f'{row["arm"]}, seed {row["seed"]}: other {what} than {partner["arm"]}')
    return complaints


def are_paired(rows: Sequence[dict]) -> bool:
    """Whether there is a pair of runs at all that `unfair_rows` looks at."""
    return bool(_pairs(rows))


def _pairs(rows: Sequence[dict]) -> list[tuple[dict, dict]]:
    """Each run beside plain of its seed, or beside the first arm where there is no plain."""
    students = [row for row in rows if row['arm'] != TEACHER and 'initial_sha256' in row]
    equal = [row for row in students if row.get('file') != PLAIN_TIME]
    first = {row['seed']: row for row in reversed(equal)} | {row['seed']: row for row in equal if row['arm'] == PLAIN}
    return [(row, first[row['seed']]) for row in students if row is not first.get(row['seed']) and row['seed'] in first]


def other_teachers(rows: Sequence[dict]) -> list[str]:
    """Runs that learned from another teacher than most did, by the digest of its weights.

    Args:
        rows: One dict a run, with `teacher_sha256` where it had one.

    Returns:
        One sentence a run.
    """
    taught = [row for row in rows if row.get('teacher_sha256')]
    usual = main_teacher(rows)
    scores = {
        row['weights_sha256']: row['metrics'] for row in rows if row['arm'] == TEACHER and 'weights_sha256' in row
    }

    def name(digest: str | None) -> str:
        score = next(iter(scores.get(digest, {}).items()), None)
        return f'{str(digest)[:8]} ({score[0]} {score[1]:.3f})' if score else str(digest)[:8]

    return [
        f'{row["arm"]}, seed {row["seed"]}: learned from another teacher of the same recipe, '
        f'{name(row["teacher_sha256"])}, the others from {name(usual)}'
        for row in taught
        if row['teacher_sha256'] != usual
    ]


def main_teacher(rows: Sequence[dict]) -> str | None:
    """Digest of the teacher that most runs learned from; None where no run says."""
    counts = Counter(row['teacher_sha256'] for row in rows if row.get('teacher_sha256'))
    return counts.most_common(1)[0][0] if counts else None
