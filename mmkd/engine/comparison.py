"""Student, distilled student and teacher on the same test set, in one table.

All see the same pictures through the student's test pipeline; each normalises them in its own way.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from rich.console import Console
from rich.table import Table

from mmkd.engine.mmdet_config import inference_dataset
from mmkd.engine.preflight_data import dataset_classes
from mmkd.models.algorithms.model_config import ModelSource, load_model_source

TEACHER = 'teacher'
COSTS = ('parameters, M', 'GFLOPs', 'ms/image', 'images/s')


@dataclass(frozen=True)
class Candidate:
    """A detector to score.

    Args:
        name: heading of its column.
        cfg: plain configuration, with `load_from`.
        strict: refuse a checkpoint that does not fit.
    """

    name: str
    cfg: Config
    strict: bool = True


@dataclass
class Comparison:
    """Scores by detector.

    Args:
        scores: name of the detector -> metric -> value, in the order in which they were measured; the first is the one
            that is looked at.
        costs: name of the detector -> entry of `COSTS` -> value.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """One row a metric: values, then the difference of the first detector to each of the others."""
        others, rows = list(self.scores)[1:], []
        for metric in dict.fromkeys(metric for scores in self.scores.values() for metric in scores):
            values = [self.scores[name].get(metric) for name in self.scores]
            known = [value is not None and value >= 0 for value in values]  # COCO's metric says -1 for "no such object"
            gaps = [
                values[0] - value if known[0] and fine else None
                for value, fine in zip(values[1:], known[1:], strict=True)
            ]
            cells = ['-' if value is None else f'{value:.3f}' for value in values]
            rows.append([metric, *cells, *('-' if gap is None else f'{gap:+.3f}' for gap in gaps)])
        for kind in COSTS:
            cells = [self.costs.get(name, {}).get(kind) for name in self.scores]
            if any(cell is not None for cell in cells):
                rows.append([kind, *('-' if cell is None else f'{cell:.2f}' for cell in cells), *[''] * len(others)])
        return rows

    def print(self, console: Console) -> None:
        """The table, in the main process alone."""
        if not is_main_process():
            return
        first, *others = self.scores
        table = Table(title='Same images, same evaluator', title_justify='left', show_edge=False)
        for head in ('', *self.scores, *(f'{first} - {other}' for other in others)):
            table.add_column(head, justify='right' if head else 'left', overflow='fold')
        for row in self.rows():
            table.add_row(*row)
        console.print(table)
        for name in [name for name, scores in self.scores.items() if not scores]:
            console.print(
                f'{name}: the evaluator gives no score, mostly because it detects nothing at all.', style='red'
            )
        if others:
            console.print('One run of each: a difference below the spread between seeds says nothing.', style='dim')

    def write(self, path: Path) -> None:
        """Save everything as JSON, in the main process alone."""
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(scores=self.scores, costs=self.costs), indent=1), encoding='utf-8')


def parse_others(entries: Sequence[str], first: str) -> dict[str, str]:
    """Names and checkpoints of `--compare [NAME=]CHECKPOINT ...`; without a name it is `folder/file`.

    Args:
        entries: as given.
        first: name of the detector that they are compared with.

    Raises:
        ValueError: two have the same name, or that of the first or of the teacher.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition('=')
        if not equals or '/' in name:
            name, path = f'{Path(entry).parent.name}/{Path(entry).stem}'.lstrip('/'), entry
        if not path or not name or name in (*found, first, TEACHER):
            raise ValueError(
                f'--compare {entry}: every entry is NAME=CHECKPOINT with a name of its own; taken are '
                f'{", ".join((*found, first, TEACHER))}.'
            )
        found[name] = path
    return found


def teacher_candidate(cfg: Config, student: Config) -> tuple[Candidate | None, str]:
    """The teacher of a distillation, on the student's test set.

    Args:
        cfg: of the distillation, as it was read.
        student: the plain configuration of the student's test.

    Returns:
        The teacher, or None and the reason why it cannot be scored.

    Raises:
        FileNotFoundError: the teacher's configuration does not exist.
    """
    model = cfg.get('model') or {}
    if not model.get('teacher'):
        return None, 'the configuration names no teacher'
    source: ModelSource = load_model_source(model.teacher)
    weights = model.get('teacher_ckpt') or source.weights
    if not weights:
        return None, f'no weights are known for the teacher {source.name}'
    classes = dataset_classes(inference_dataset(student))
    predicted = _head_classes(source.model)
    if classes and predicted not in (None, len(classes)):
        return None, f'the teacher predicts {predicted} classes, the test set has {len(classes)}'
    if source.numbers_otherwise(classes):
        return None, f'the teacher numbers the classes otherwise: {", ".join(source.classes)}'
    own = copy.deepcopy(student)
    own.model, own.load_from = ConfigDict(source.model), weights
    own.pop('data_preprocessor', None)
    return Candidate(TEACHER, own, model.get('teacher_strict', True)), ''


def _head_classes(model: ConfigDict) -> int | None:
    """As `num_classes`, of a configuration."""
    head = model.get('bbox_head') or (model.get('roi_head') or {}).get('bbox_head')
    head = head[-1] if isinstance(head, list | tuple) else head
    return (head or {}).get('num_classes')
