"""What an export did, in numbers: the source, the exported student and, where it is known, the teacher."""

import copy
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table

from mmkd.engine.detector_cost import gflops, parameter_count
from mmkd.engine.export_source import ExportSource, values_by_section
from mmkd.engine.mmdet_config import named_model
from mmkd.models.algorithms.model_config import load_model_source


def teacher_of(source: ExportSource) -> ConfigDict | None:
    """The teacher's network, where the source tells it; None where it does not, or it cannot be found.

    A path is followed only if the user named the configuration in which it stands: it would be run as Python.
    """
    model = source.cfg.get('model') or {}
    checkpoint = source.checkpoint if isinstance(source.checkpoint, dict) else {}
    saved = ((checkpoint.get('mmkd') or {}).get('teacher') or {}).get('config')
    teacher = model.get('teacher') or (saved if isinstance(saved, str) else None)
    try:
        if isinstance(teacher, str):
            return load_model_source(teacher).model if source.trusted or '::' in teacher else None
        return ConfigDict(named_model(teacher.to_dict())) if teacher else None
    except (ValueError, FileNotFoundError, TypeError):
        return None


@dataclass
class ExportReport:
    """Result of an export.

    Args:
        source: what was read.
        files: what was written: checkpoint, configuration, graph.
        notes: what was chosen, left out, and found.
        shape: (H, W) px for the GFLOPs, and of the graph.
        before: the student as trained.
        after: the student as exported.
        teacher: configuration of the teacher, if known.
    """

    source: ExportSource
    files: list[Path]
    notes: list[str]
    shape: tuple[int, int]
    before: BaseModel
    after: BaseModel
    teacher: ConfigDict | None

    def rows(self) -> list[list[str]]:
        """File size, values in the file, parameters and GFLOPs; one column each for source, exported, teacher."""
        sections = values_by_section(self.source.checkpoint)
        exported = sum(value.numel() for value in self.after.state_dict().values())
        rows = [
            ['file, MB', *(f'{path.stat().st_size / 1e6:.2f}' for path in (self.source.path, self.files[0]))],
            ['values in the file, M', f'{sum(sections.values()) / 1e6:.3f}', f'{exported / 1e6:.3f}'],
            ['parameters of the detector, M', *(f'{parameter_count(m) / 1e6:.3f}' for m in (self.before, self.after))],
            [f'GFLOPs at {self.shape[0]}x{self.shape[1]}', *(f'{gflops(m, self.shape):.3f}' for m in self._models())],
        ]
        if self.teacher is not None:
            teacher = self._build_teacher()
            cells = ['-', '-', f'{parameter_count(teacher) / 1e6:.3f}', f'{gflops(teacher, self.shape):.3f}']
            rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        return rows

    def _models(self) -> tuple[BaseModel, BaseModel]:
        return self.before, self.after

    def _build_teacher(self) -> BaseModel:
        with DefaultScope.overwrite_default_scope('mmdet'):
            return revert_sync_batchnorm(MODELS.build(copy.deepcopy(self.teacher))).eval()

    def print(self, console: Console) -> None:
        """The table, the notes, and the files."""
        table = Table(title=f'Export of {self.source.path}', title_justify='left', show_edge=False)
        rows = self.rows()
        for head in ('', 'source', 'exported', 'teacher')[: len(rows[0])]:
            table.add_column(head, justify='right' if head else 'left')
        for row in rows:
            table.add_row(*row)
        console.print(table)
        parts = ', '.join(
            f'{name} {count / 1e6:.3f}' for name, count in values_by_section(self.source.checkpoint).items()
        )
        for note in (f'the source file holds, in M values: {parts}', *self.notes):
            console.print(f'- {note}', markup=False, highlight=False, soft_wrap=True)
        for path in self.files:
            console.print(f'written: {path} ({path.stat().st_size / 1e6:.2f} MB)', markup=False, soft_wrap=True)
