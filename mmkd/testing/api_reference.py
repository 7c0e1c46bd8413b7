"""The API reference in plain Markdown, written from the sources: `docs/api.md` and a page a package in `docs/api`.

    python -m mmkd.testing.api_reference

Nothing is imported; a page is the same wherever it is written. What people build with (mathematics, losses, connectors,
algorithms, data, metrics, hooks, pictures) is there with signature and whole docstring; what the tools are made of with
one line each. A test says when the pages are older than the sources.
"""

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkd.testing.runs import write_text

ROOT = Path(__file__).resolve().parents[2]
# Page -> title, folders and files of `mmkd`; a path that stands under an earlier page is not repeated.
_WHOLE = {
    'functional': ('Mathematics', ['functional']),
    'losses': ('Losses', ['models/losses']),
    'connectors': ('Connectors, masks, self-teachers', ['models/connectors', 'models/masks', 'models/self_teachers']),
    'distillers': ('Distiller', ['models/distillers']),
    'algorithms': ('Algorithms', ['models/algorithms', 'models/apart.py', 'models/autograd_graph.py']),
    'data': ('Data sets and metrics', ['datasets', 'evaluation']),
    'hooks': ('Hooks', ['engine/hooks']),
    'visualization': ('Pictures', ['visualization']),
}
_SHORT = {
    'engine': (
        'What the tools call',
        ['engine', 'compat.py', 'near_names.py', 'process_ranks.py', 'registry.py', 'releases.py', 'whole_files.py'],
    ),
    'testing': ('Experiments, benchmarks, toys', ['testing']),
}
_SECTION = re.compile(r'(Args|Returns|Yields|Raises|Warns|Attributes|Note|Example):$')
_ENTRY = re.compile(r'(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): +(.*)')
_NOTE = '<!-- Written by `python -m mmkd.testing.api_reference` from the docstrings: change those. -->'

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A source file.

    Args:
        path: Below `mmkd`, such as `functional/ssim.py`.
        tree: Of its syntax.
    """

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """Dotted name."""
        return '.'.join(['mmkd', *self.path.with_suffix('').parts])

    def definitions(self) -> list[Definition]:
        """Public classes and functions, in the order of the file."""
        return [node for node in self.tree.body if isinstance(node, Definition) and not node.name.startswith('_')]


def pages(root: Path = ROOT) -> dict[str, str]:
    """All pages.

    Args:
        root: Of the project.

    Returns:
        Text by path below `docs`.
    """
    seen: set[Path] = set()
    texts, index = {}, [f'# API reference\n\n{_NOTE}\n']
    for table, render in ((_WHOLE, _whole_page), (_SHORT, _short_page)):
        for stem, (title, paths) in table.items():
            modules = [module for module in _modules(root, paths) if module.path not in seen]
            seen.update(module.path for module in modules)
            modules = [module for module in modules if module.definitions()]
            texts[f'api/{stem}.md'] = f'# {title}\n\n{_NOTE}\n\n{render(modules)}'
            index.append(_index_entry(stem, title, modules, configs=table is _WHOLE))
    return {'api.md': '\n'.join(index), **texts}


def registered_name(node: Definition) -> str | None:
    """Registry that a class enters by its decorator.

    Args:
        node: Of the class.

    Returns:
        Such as `MODELS`; None for what is not registered.
    """
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(call, ast.Attribute) and call.attr == 'register_module':
            return ast.unparse(call.value)
    return None


def markdown(docstring: str) -> str:
    """A google docstring as Markdown.

    Args:
        docstring: Without its indentation.

    Returns:
        Paragraphs as they are, sections as bold words and lists.
    """
    lines, section = [], ''
    for line in docstring.splitlines():
        heading = _SECTION.match(line)
        if heading:
            section = heading[1]
            lines += [f'**{section}**', '']
        elif section and line.strip():
            entry = _ENTRY.fullmatch(line[4:]) if line.startswith('    ') else None
            if entry and section in ('Args', 'Raises', 'Warns', 'Attributes'):
                lines.append(f'- `{entry[1]}`: {_plain(entry[2])}')
            else:
                inside = bool(lines) and lines[-1].startswith(('- ', '  '))
                lines.append(('  ' if inside else '') + _plain(line.strip()))
        else:
            lines.append(_plain(line))
    return '\n'.join(lines).strip()


def _plain(line: str) -> str:
    """Stars between letters and brackets before letters are not meant as markup; code stays as it is."""
    parts = line.split('`')
    parts[::2] = [re.sub(r'(?<=\w)\*(?=\w)|<(?=[A-Za-z/])', r'\\\g<0>', part) for part in parts[::2]]
    return '`'.join(parts)


def _modules(root: Path, paths: Sequence[str]) -> Iterator[Module]:
    package = root / 'mmkd'
    for path in paths:
        found = [package / path] if path.endswith('.py') else sorted((package / path).rglob('*.py'))
        for file in found:
            yield Module(file.relative_to(package), ast.parse(file.read_text(encoding='utf-8')))


def _index_entry(stem: str, title: str, modules: Sequence[Module], *, configs: bool) -> str:
    names = [(node, module) for module in modules for node in module.definitions()]
    registered = [f'`{node.name}`' for node, _ in names if registered_name(node)]
    text = f'## [{title}](api/{stem}.md)\n\n{len(names)} classes and functions in {len(modules)} modules.'
    if configs and registered:
        text += f' In configs, as `mmkd.NAME`: {", ".join(registered)}.'
    return f'{text}\n'


def _short_page(modules: Sequence[Module]) -> str:
    parts = []
    for module in modules:
        parts.append(f'{_module_head(module)}\n\n| name | what it is |\n| --- | --- |')
        rows = [(node.name, _first_line(node).replace('|', '\\|')) for node in module.definitions()]
        parts[-1] += ''.join(f'\n| `{name}` | {line} |' for name, line in rows) + '\n'
    return '\n'.join(parts)


def _whole_page(modules: Sequence[Module]) -> str:
    parts = []
    for module in modules:
        about = ast.get_docstring(module.tree) or ''
        parts.append(f'{_module_head(module)}\n\n{markdown(about)}\n')
        parts += [_definition(node) for node in module.definitions()]
    return '\n'.join(parts)


def _module_head(module: Module) -> str:
    return f'## {module.name}\n\n[source](../../mmkd/{module.path.as_posix()})'


def _definition(node: Definition) -> str:
    registry = registered_name(node)
    text = f'### {node.name}\n\n```python\n{_signature(node)}\n```\n\n'
    if registry:
        text += f"Registered in `{registry}`: `type='mmkd.{node.name}'`.\n\n"
    text += f'{markdown(ast.get_docstring(node) or "")}\n'
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, Definition) and not method.name.startswith('_') and ast.get_docstring(method):
                text += f'\n#### {node.name}.{method.name}\n\n```python\n{_signature(method)}\n```\n\n'
                text += f'{markdown(ast.get_docstring(method))}\n'
    return text


def _signature(node: Definition) -> str:
    """As it would be typed; long ones with an argument a line."""
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(part) for part in node.body if _is_field(part)]
        made = next((part for part in node.body if isinstance(part, Definition) and part.name == '__init__'), None)
        bases = ', '.join(map(ast.unparse, node.bases))
        head = f'class {node.name}({bases})' if bases else f'class {node.name}'
        if made:
            return f'{head}\n{_call(node.name, _arguments(made)[1:])}'
        return f'{head}\n{_call(node.name, fields)}' if fields else head
    kind = 'async def' if isinstance(node, ast.AsyncFunctionDef) else 'def'
    words = [ast.unparse(word) for word in node.decorator_list]
    words = [f'@{word}\n' for word in words if word in ('property', 'staticmethod', 'classmethod')]
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return f'{"".join(words)}{kind} {_call(node.name, _arguments(node))}{returns}'


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and not ast.unparse(node).startswith('_')


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    values: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    texts = [_argument(argument, value) for argument, value in zip(plain, values, strict=True)]
    if given.vararg:
        texts.append(f'*{_argument(given.vararg)}')
    elif given.kwonlyargs:
        texts.append('*')
    texts += [_argument(argument, value) for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*texts, f'**{_argument(given.kwarg)}'] if given.kwarg else texts


def _argument(argument: ast.arg, value: ast.expr | None = None) -> str:
    text = ast.unparse(argument)
    if value is None:
        return text
    return f'{text} = {ast.unparse(value)}' if argument.annotation else f'{text}={ast.unparse(value)}'


def _call(name: str, arguments: Sequence[str]) -> str:
    line = f'{name}({", ".join(arguments)})'
    if len(line) <= 100:
        return line
    return f'{name}(\n' + ''.join(f'    {argument},\n' for argument in arguments) + ')'


def _first_line(node: Definition) -> str:
    return _plain((ast.get_docstring(node) or '').partition('\n\n')[0].replace('\n', ' '))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages.

    Args:
        argv: Arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(
        prog='api_reference', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder to write into (docs)')
    folder = parser.parse_args(argv).out
    (folder / 'api').mkdir(parents=True, exist_ok=True)
    written = pages()
    for name, text in written.items():
        write_text(folder / name, text)
    print(f'{len(written)} pages in {folder}')


if __name__ == '__main__':
    main()
