"""What a reader of a table of results must know, found in the runs alone."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce

from mmkd.testing.arms import own_rate
from mmkd.testing.fairness import main_teacher, other_teachers, unfair_rows
from mmkd.testing.final_score import SITTING
from mmkd.testing.methods import PLAIN, TEACHER, is_plain, needs_teacher
from mmkd.testing.time_budget import budget_note


def remarks(rows: Sequence[dict]) -> dict[str, list[str]]:
    """What a reader of the table must know, from its runs alone.

    Args:
        rows: One dict a run.

    Returns:
        `unfair`: runs that cannot be compared; `notes`: sentences.
    """
    return {'unfair': unfair_rows(rows) + other_teachers(rows), 'notes': _notes(rows)}


def of_one_teacher(rows: Sequence[dict]) -> list[dict]:
    """Leave out teachers that hardly any run learned from: the teacher of a table is that of the others.

    Args:
        rows: One dict a run.

    Returns:
        One teacher's row, where there is one, then the students'.
    """
    usual = main_teacher(rows)
    teachers = [row for row in rows if row['arm'] == TEACHER]
    shown = [row for row in teachers if row.get('weights_sha256') == usual] or teachers[:1]
    return [*shown, *(row for row in rows if row['arm'] != TEACHER)]


def teacher_note(rows: Sequence[dict]) -> str:
    """What to know of a teacher that has little to teach.

    Args:
        rows: One dict a run, of one teacher.

    Returns:
        A sentence; empty where the teacher is better than plain, one of them has no run, or no arm learns from it.
    """
    others = [row for row in rows if row['arm'] not in (TEACHER, PLAIN)]
    if others and not any(needs_teacher(row.get('file') or row.get('method') or row['arm']) for row in others):
        return ''
    scores = {
        arm: [next(iter(row['metrics'].values())) for row in rows if row['arm'] == arm] for arm in (TEACHER, PLAIN)
    }
    if not all(scores.values()):
        return ''
    teacher, plain = scores[TEACHER][0], sum(scores[PLAIN]) / len(scores[PLAIN])
    if teacher > plain:
        return ''
    return (
        'The teacher is no better than the plain student: differences of the methods that learn from it say little. '
        'Train it longer (--teacher-epochs), or take a larger one.'
    )


def final_note(results: dict) -> str:
    """How the scores of the final split came about: a later sitting knew the scores of the earlier ones.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        A sentence; empty where there is no final split.
    """
    final = results['setting'].get('final')
    if not final:
        return ''
    counts = Counter(row[SITTING] for row in results['runs'] if SITTING in row)
    sittings = ', '.join(f'{moment} ({count} runs)' for moment, count in sorted(counts.items()))
    text = (
        f'Columns that end in "{final["split"]}" are scores on the split {final["split"]}, {final["images"]} images. '
    )
    text += 'Each run was scored there once, behind its training'
    return text + (f', in {len(counts)} sittings (UTC): {sittings}.' if len(counts) > 1 else '.')


def plain_of_the_pairs(results: dict, metrics: Sequence[str]) -> str:
    """Plain's scores over the seeds of those arms that have other seeds: what their differences are taken to.

    Args:
        results: Of `mmkd.testing.results.collect_results`.
        metrics: Names of the scores to give.

    Returns:
        Sentences; empty where every arm has the seeds of plain.
    """
    scores = {row['seed']: row['metrics'] for row in results['runs'] if row['arm'] == PLAIN}
    paired = {tuple(sorted(set(found['seeds']) & set(scores))) for found in _but_the_teacher(results)}
    texts = []
    for seeds in sorted(paired - {(), tuple(sorted(scores))}):
        means = {
            name: sum(scores[seed][name] for seed in seeds) / len(seeds)
            for name in metrics
            if all(name in scores[seed] for seed in seeds)
        }
        found = ', '.join(f'{name} {results["setting"]["percent"] * mean:.1f}' for name, mean in means.items())
        texts.append(f'Plain over the seeds {", ".join(map(str, seeds))}: {found}.')
    return ' '.join(texts)


def _but_the_teacher(results: dict) -> list[dict]:
    return [found for arm, found in results['arms'].items() if arm != TEACHER]


def has_mixed_seeds(results: dict) -> bool:
    """Whether some arms of a table have other seeds than others."""
    return len({tuple(found['seeds']) for found in _but_the_teacher(results)}) > 1


def _meaning(row: dict) -> str:
    """What an arm's name stands for, where it is not just a method file."""
    file, options = row.get('file'), row.get('options') or []
    if is_plain(file or PLAIN):
        rate = own_rate(options)
        return f'{row["arm"]} is {file} with peak learning rate {rate:g}' if rate else ''
    if file == row['arm'] and not options:
        return ''
    short = {'distiller.': '', 'distill_losses.': '', '.loss.': '.'}  # what nearly every key begins with
    text = ', '.join(f'{reduce(lambda key, part: key.replace(*part), short.items(), key)}={v}' for key, v in options)
    return f'{row["arm"]} is the method file {file}' + (f' with {text}' if text else '')


def rate_note(rows: Sequence[dict]) -> str:
    """What to know where plain training is better at another learning rate than the experiment's.

    Args:
        rows: One dict a run.

    Returns:
        A sentence for each such arm, by the mean of its first metric over the seeds that it shares with plain; empty
        without any.
    """
    scores: dict[str, dict] = {}
    for row in rows:
        of_a_rate = row['arm'] == PLAIN or own_rate(row.get('options') or [])
        if row.get('file') == PLAIN and of_a_rate and 'metrics' in row:
            scores.setdefault(row['arm'], {})[row['seed']] = next(iter(row['metrics'].items()))
    plain = scores.pop(PLAIN, {})
    texts = []
    for arm, found in scores.items():
        shared = [seed for seed in found if seed in plain]
        gain = sum(found[seed][1] - plain[seed][1] for seed in shared) / max(len(shared), 1)
        if gain > 0:
            name = found[shared[0]][0]
            texts.append(
                f'{arm}, plain at another learning rate, has a higher mean {name} than {PLAIN}: gains over {PLAIN} are '
                'those over a student that is not trained at its best rate.'
            )
    return ' '.join(texts)


def _notes(rows: Sequence[dict]) -> list[str]:
    notes = [budget_note(rows), teacher_note(of_one_teacher(rows)), rate_note(rows)]
    notes.append('; '.join(dict.fromkeys(filter(None, map(_meaning, rows)))))
    notes[-1] += '.' if notes[-1] else ''
    unsure = {row['arm'] for row in rows if 'settings_sha256' in row}
    unsure = [arm for arm in unsure if any(row['arm'] == arm and 'settings_sha256' not in row for row in rows)]
    if unsure:
        notes.append(
            f'Some runs of {", ".join(sorted(unsure))} were made before settings were recorded: whether they are those '
            'of the others is not known.'
        )
    codes = {row['code'] for row in rows if 'code' in row}
    if len(codes) > 1:
        notes.append(
            f'The runs were made with {len(codes)} versions of the code (`code` of each run in the JSON file).'
        )
    devices = {row.get('hardware') for row in rows if row.get('hardware')}
    if len(devices) > 1:
        notes.append('The runs were made on more than one kind of machine: compare their times with care.')
    return [note for note in notes if note]
