"""From the readings of a run to a table and to advice in words.

The thresholds are this project's rules of thumb, named below; none of them is a law. A negative cosine as a sign of
conflict: Yu et al. 2020 (https://arxiv.org/abs/2001.06782) and, for auxiliary losses, Du et al. 2018
(https://arxiv.org/abs/1812.02224).
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from mmkd.engine.diagnosis import SELF_TEACHER, TOGETHER, LossReading, Reading

WEAK, STRONG, GOOD = 0.1, 1.0, 0.5  # gradient norm over the task's: too little, much, what to aim at
SAME_WAY = 0.05  # mean cosine from which a strong distillation still serves the task
CONFLICT, OFTEN = -0.05, 2 / 3  # mean cosine over the second half, and the part of it that is negative
RISE = 0.02  # of the similarity, from the first to the last readings
ALIKE = 0.95  # similarity with which there is next to nothing to learn
FALL = 0.95  # of the loss, last over first
AHEAD = 1.02  # the teacher's score over the student's
FEWEST = 4  # readings from which a course is judged

HEADER = ('loss', 'loss_weight', 'gradient / task', 'cosine', 'similarity', 'before connector', 'value')


@dataclass(frozen=True)
class Summary:
    """One loss over a run; a course is a pair (mean of the first, mean of the last quarter of the readings).

    Args:
        name: of the loss.
        readings: how many.
        weight: `loss_weight`, NaN where it has none.
        share: median of the gradient norm over the task's.
        cosine: mean over the second half of the readings.
        negative: part of the second half with a negative cosine.
        similarity: course of the similarity of what the loss compares.
        before: course of the similarity before the connector.
        value: course of the loss, without its schedule's factor.
    """

    name: str
    readings: int
    weight: float
    share: float
    cosine: float
    negative: float
    similarity: tuple[float, float]
    before: tuple[float, float]
    value: tuple[float, float]

    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        cells = [_number(self.weight), _number(self.share), _number(self.cosine)]
        return self.name, *cells, _course(self.similarity), _course(self.before), _course(self.value)


def summarise(readings: Sequence[Reading]) -> list[Summary]:
    """Every loss of a run.

    Args:
        readings: in the order of the iterations.

    Returns:
        One summary a loss, in the order in which they first occur.
    """
    names = dict.fromkeys(name for reading in readings for name in reading.losses)
    return [_summary(name, [r for r in readings if name in r.losses]) for name in names]


def _summary(name: str, readings: Sequence[Reading]) -> Summary:
    losses = [reading.losses[name] for reading in readings]
    second = [loss.cosine for loss in losses[len(losses) // 2 :] if math.isfinite(loss.cosine)]
    shares = [share for share in (reading.share(name) for reading in readings) if math.isfinite(share)]

    def course(pick: Callable[[LossReading], float]) -> tuple[float, float]:
        quarter = max(1, len(losses) // 4)
        return _mean([pick(loss) for loss in losses[:quarter]]), _mean([pick(loss) for loss in losses[-quarter:]])

    return Summary(
        name=name,
        readings=len(losses),
        weight=losses[-1].weight,
        share=median(shares) if shares else math.nan,
        cosine=_mean(second),
        negative=sum(cosine < 0 for cosine in second) / len(second) if second else math.nan,
        similarity=course(lambda loss: loss.similarity),
        before=course(lambda loss: loss.before_connector),
        value=course(lambda loss: loss.value),
    )


def table_text(summaries: Sequence[Summary]) -> str:
    """The table as plain text, for a log."""
    table = Table(*HEADER)
    for one in summaries:
        table.add_row(*one.row())
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def advise(
    summaries: Sequence[Summary], scores: tuple[str, float, float] | None = None, *, trained: bool = True
) -> list[str]:
    """What the numbers suggest.

    Args:
        summaries: of `summarise`.
        scores: name of a metric, its value for the teacher and for the student, on the same images.
        trained: whether the readings are those of a training; otherwise no course is judged.

    Returns:
        Sentences; the last resort where no rule applies, so never nothing.
    """
    rules = (*RULES, *COURSE_RULES) if trained else RULES
    found = [text for one in summaries if one.name != SELF_TEACHER for rule in rules for text in rule(one)]
    if not any(math.isfinite(one.share) for one in summaries):
        found.append(
            'No gradient could be measured: the student recomputes activations (with_cp), which torch differentiates '
            'only as a whole. Set with_cp=False for a short diagnosis.'
        )
    if scores is not None and scores[1] < AHEAD * scores[2]:
        name, teacher, student = scores
        found.append(
            f'The teacher has {name} {teacher:.3f}, the student {student:.3f} on the same images: a teacher that is '
            'no better has little to teach. Train it longer on this data, or take a better one.'
        )
    if not found and not trained:
        found.append('Nothing stands out in the weights; mmkd.DiagnosisHook follows them through a training.')
    elif not found:
        found.append(
            'Nothing stands out: the distillation has a say, does not work against the task, and brings the features '
            'together. What is left to doubt is chance (several seeds: tools/compare_methods.py) and the method itself.'
        )
    most = max((one.readings for one in summaries), default=FEWEST)
    if trained and most < FEWEST:
        found.append(f'Only {most} readings: courses over training are not judged (at least {FEWEST}).')
    return found


def _too_weak(one: Summary) -> Iterator[str]:
    if one.name != TOGETHER and one.share < WEAK:
        yield (
            f"{one.name}: its gradient is {one.share:.2g} of the task's (below {WEAK:g}), so it has little say. "
            f'{_reweight(one)}'
        )


def _too_strong(one: Summary) -> Iterator[str]:
    if not one.share > STRONG:  # also where it cannot be had
        return
    start = f"{one.name}: its gradient is {one.share:.2g} times the task's (above {STRONG:g}), so it rules the training"
    if one.cosine > SAME_WAY:
        yield (
            f'{start}, in the direction of the task (cosine {one.cosine:.2f}). That speeds a start up. Where the '
            'student falls behind plain training later on, end it earlier (schedules: constant with an end), or: '
            f'{_reweight(one)}'
        )
    else:
        yield f"{start}, and does not share the task's direction (cosine {one.cosine:.2f}). {_reweight(one)}"


def _reweight(one: Summary) -> str:
    if one.share == 0:
        return 'It reaches no shared layer of the student at all: look at its records.'
    factor = GOOD / one.share
    if one.name == TOGETHER or math.isnan(one.weight):
        return f'Multiply the weight{"s of all" if one.name == TOGETHER else ""} by about {factor:.2g}.'
    return f'Try loss_weight={one.weight * factor:.2g} instead of {one.weight:.3g}, for a share of about {GOOD:g}.'


def _conflict(one: Summary) -> Iterator[str]:
    if one.readings >= FEWEST and one.cosine < CONFLICT and one.negative >= OFTEN:
        yield (
            f'{one.name}: works against the task. The cosine of the gradients is {one.cosine:.2f} on average in the '
            f'second half, negative in {100 * one.negative:.0f} % of its readings. Lower the weight, end it earlier '
            '(schedules: constant with an end), or record another level.'
        )


def _alike(one: Summary) -> Iterator[str]:
    if min(one.similarity) > ALIKE:
        yield (
            f'{one.name}: student and teacher were alike from the beginning (similarity {one.similarity[0]:.2f}): '
            'there is next to nothing to learn at this layer.'
        )


def _approach(one: Summary) -> Iterator[str]:
    first, last = one.similarity
    rise, own = last - first, one.before[1] - one.before[0]
    if min(first, last) > ALIKE:
        return
    if one.readings >= FEWEST and rise >= RISE and own < RISE:
        yield (
            f"{one.name}: what the loss compares came closer ({first:.2f} to {last:.2f}), the student's own features "
            f'did not ({one.before[0]:.2f} to {one.before[1]:.2f}): the connector did the learning. Take a simpler '
            'one (1x1 without bias or norm), or none where the channels agree.'
        )
    elif one.readings >= FEWEST and rise < RISE:
        yield (
            f'{one.name}: student and teacher did not come closer (similarity {first:.2f} to {last:.2f}): too '
            'little weight, too short, another normalisation of the input, or a layer that the student cannot imitate.'
        )


def _value(one: Summary) -> Iterator[str]:
    first, last = one.value
    if one.name != TOGETHER and one.readings >= FEWEST and last > FALL * first > 0:
        yield (
            f'{one.name}: the loss did not fall ({first:.3g} to {last:.3g}). Compare its weight and the learning rate '
            'of the connectors; with a weak teacher it may not be learnable.'
        )


RULES = (_too_weak, _too_strong, _alike)
COURSE_RULES = (_conflict, _approach, _value)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _number(value: float) -> str:
    return f'{value:.3g}' if math.isfinite(value) else '-'


def _course(pair: tuple[float, float]) -> str:
    return f'{_number(pair[0])} -> {_number(pair[1])}' if math.isfinite(pair[0] + pair[1]) else '-'
