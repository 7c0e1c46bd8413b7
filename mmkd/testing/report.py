"""Tables and a page from finished experiments, each named by its work directory or its store.

python -m mmkd.testing.report WORK_DIR --page docs/results/NAME.md --json docs/results/NAME.json
python -m mmkd.testing.report docs/results/A.json docs/results/B.json --page docs/results/AB.md --short-page README.md
python -m mmkd.testing.report docs/results/*.json --html report.html
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmkd.testing.html_report import html_page
from mmkd.testing.remarks import remarks
from mmkd.testing.runs import write_text
from mmkd.testing.store import write_store
from mmkd.testing.tables import markdown, print_table, short_markdown

_DIAGNOSIS = 'diagnosis.md'  # what tables of gradients link to


def load_results(source: Path) -> dict:
    """Results of one experiment.

    Args:
        source: Its work directory, or a JSON file of results.

    Returns:
        The content, with the remarks that today's tools make on its runs.

    Raises:
        FileNotFoundError: Where there are none.
        ValueError: Where the file holds something else.
    """
    file = source / 'results.json' if source.is_dir() else source
    if not file.is_file():
        raise FileNotFoundError(f'no {file}: an experiment writes it when it has finished')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'{file} is no JSON file: {error}') from None
    if not isinstance(content, dict) or not {'setting', 'arms', 'runs', 'unfair'} <= set(content):
        raise ValueError(f'{file} holds no results of an experiment')
    return content | remarks(content['runs'])


def section_name(source: Path, results: dict) -> str:
    """Name of a section: the file's, or for a folder the data set's."""
    return results['setting']['data'] if source.is_dir() else source.stem


def way_to_docs(page: Path) -> str:
    """Way from a page to the folder of the documentation, which may be one above: `` or `../`."""
    folder = page.resolve().parent
    return '../' if (folder.parent / _DIAGNOSIS).is_file() and not (folder / _DIAGNOSIS).is_file() else ''


def write_section(page: Path, name: str, text: str) -> None:
    """Put text between the markers of a page, `<!-- name -->` and `<!-- /name -->`; append them where they are not.

    Args:
        page: Markdown file; made when absent.
        name: Of the section.
        text: Its new content.

    Raises:
        ValueError: Where only one of the two markers is there.
    """
    begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
    old = page.read_text() if page.exists() else ''
    if (begin in old) != (end in old):
        raise ValueError(f'{page} holds only one of {begin} and {end}')
    block = f'{begin}\n{text.strip()}\n{end}'
    if begin in old:
        before, rest = old.split(begin, 1)
        new = before + block + rest.split(end, 1)[1]
    else:
        new = old.rstrip('\n') + ('\n\n' if old else '') + block + '\n'
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(new)


def _refuse_other_results(target: Path | None, results: dict) -> None:
    """A copy may be renewed, but not take the place of another experiment or of anything else."""
    if target is None or not target.exists():
        return
    try:
        there = load_results(target)
    except ValueError as error:
        sys.exit(f'report: --json: {error}; nothing was changed')
    if there.get('identity') != results.get('identity'):
        sys.exit(f'report: --json {target} holds another experiment; nothing was changed')


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, nargs='+', help='folder with results.json, or a store')
    parser.add_argument('--page', type=Path, help='Markdown page to write the whole tables into')
    parser.add_argument('--short-page', type=Path, help='Markdown page to write the short tables into')
    parser.add_argument('--name', help="of the section, for one source (a store: the file's name; else the data set)")
    parser.add_argument('--json', type=Path, help='copy of the results of one source, to be committed')
    parser.add_argument('--html', type=Path, help='one page for a browser, with everything in it')
    options = parser.parse_args(argv)
    if len(options.source) > 1 and (options.name or options.json):
        parser.error('--name and --json are for one source')
    try:
        found = [load_results(source) for source in options.source]
    except (OSError, ValueError) as error:
        sys.exit(f'report: {error}')
    names = [options.name or section_name(*pair) for pair in zip(options.source, found, strict=True)]
    twice = [name for name in names if names.count(name) > 1]
    if twice and (options.page or options.short_page):
        parser.error(f'two sources would write the section {twice[0]!r}: give stores of different names')
    _refuse_other_results(options.json, found[0])
    for name, results in zip(names, found, strict=True):
        print_table(results)
        if options.page:
            write_section(options.page, name, markdown(results, way_to_docs(options.page)))
        if options.short_page:
            write_section(options.short_page, name, short_markdown(results))
    if options.json:
        write_store(options.json, found[0])
    if options.html:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.html, html_page(found))


if __name__ == '__main__':
    main()
