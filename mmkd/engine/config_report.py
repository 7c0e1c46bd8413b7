"""What a check of a configuration found, and how it is printed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class ConfigReport:
    """Findings of one check.

    Args:
        problems: mistakes with which training would fail, or teach nothing.
        warnings: what is allowed, but often a mistake.
        tables: title, header and rows of each table.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[tuple[str, Sequence[str], list[Sequence[str]]]] = field(default_factory=list)

    def exit_code(self, *, strict: bool = False) -> int:
        """0 for a configuration that can be trained, else 1.

        Args:
            strict: warnings count as problems.
        """
        return int(bool(self.problems or (strict and self.warnings)))

    def print(self, console: Console) -> None:
        """Tables, then warnings, then problems, then the verdict."""
        for title, header, rows in self.tables:
            table = Table(title=title, title_justify='left', show_edge=False)
            for name in header:
                table.add_column(name, overflow='fold')
            for row in rows:
                table.add_row(*row)
            console.print(table)
            console.print()
        for kind, style, texts in (('warning', 'yellow', self.warnings), ('problem', 'red', self.problems)):
            for text in texts:
                console.print(f'{kind}: {text}', style=style, markup=False, highlight=False, soft_wrap=True)
        verdict = f'{_counted(self.problems, "problem")}, {_counted(self.warnings, "warning")}.'
        console.print(verdict, style='red' if self.problems else 'green')


def _counted(texts: list[str], noun: str) -> str:
    return f'{len(texts)} {noun}' if len(texts) == 1 else f'{len(texts)} {noun}s'
