"""The API reference is whole, current, and says what the sources say."""

import inspect
import re
from pathlib import Path

import pytest

from mmkd import registry
from mmkd.functional.ssim import ssim_map
from mmkd.models.losses.ssim_loss import SSIMLoss
from mmkd.testing.api_reference import ROOT, main, markdown, pages

PUBLIC = re.compile(r'^(?:class|def|async def) ([A-Za-z]\w*)', re.MULTILINE)


@pytest.fixture(scope='module')
def written() -> dict[str, str]:
    return pages()


def test_the_pages_in_docs_are_those_of_the_sources(written: dict[str, str]) -> None:
    folder = ROOT / 'docs'
    there = {str(path.relative_to(folder)) for path in [folder / 'api.md', *(folder / 'api').glob('*')]}
    stale = sorted(name for name in written if name not in there or (folder / name).read_text() != written[name])
    assert not stale and there == set(written), f'run `python -m mmkd.testing.api_reference`: {stale}, {there}'


def test_every_public_class_and_function_is_there(written: dict[str, str]) -> None:
    text, missing = '\n'.join(written.values()), []
    for source in sorted((ROOT / 'mmkd').rglob('*.py')):
        names = PUBLIC.findall(source.read_text())
        module = '.'.join(source.relative_to(ROOT).with_suffix('').parts)
        found = re.search(rf'^## {re.escape(module)}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)
        part = found[1] if found else ''
        missing += [f'{module}.{name}' for name in names if f'### {name}\n' not in part and f'| `{name}` |' not in part]
    assert missing == []


def test_every_registered_class_is_there_with_its_registry(written: dict[str, str]) -> None:
    text = '\n'.join(written.values())
    for kind in ('MODELS', 'DATASETS', 'TRANSFORMS', 'METRICS', 'HOOKS'):
        found = getattr(registry, kind)
        found.import_from_location()
        for name, thing in found.module_dict.items():
            if thing.__module__.startswith('mmkd.') and '.testing.' not in thing.__module__:
                assert f"Registered in `{kind}`: `type='mmkd.{name}'`." in text
                assert f'### {name}\n' in text


@pytest.mark.parametrize('thing', [SSIMLoss, ssim_map])
def test_signatures_are_those_of_the_objects(thing: type, written: dict[str, str]) -> None:
    page = written['api/losses.md' if inspect.isclass(thing) else 'api/functional.md']
    shown = re.search(rf'### {thing.__name__}\n\n```python\n(.*?)```', page, re.DOTALL)[1]
    for name, argument in inspect.signature(thing).parameters.items():
        default = '' if argument.default is argument.empty else f' = {argument.default!r}'
        assert re.search(rf'\b{name}: [^=\n]*?{re.escape(default)}[,)\n]', shown), name


def test_sections_become_lists_and_formulas_stay() -> None:
    text = markdown(
        'First.\n\nOf x<y, H*W and `a*b`.\n\nArgs:\n    x: (N, H*W) the\n        rest.\n    **more: others.\n\n'
        'Returns:\n    Two\n    lines.\n\nRaises:\n    ValueError: if not.'
    )
    assert text == (
        'First.\n\nOf x\\<y, H\\*W and `a*b`.\n\n**Args**\n\n- `x`: (N, H\\*W) the\n  rest.\n- `**more`: others.\n\n'
        '**Returns**\n\nTwo\nlines.\n\n**Raises**\n\n- `ValueError`: if not.'
    )


def test_a_changed_docstring_changes_a_page(tmp_path: Path) -> None:
    source = tmp_path / 'mmkd/functional/one.py'
    source.parent.mkdir(parents=True)
    for folder in ('models/losses', 'engine', 'testing'):
        (tmp_path / 'mmkd' / folder).mkdir(parents=True)
    for name in (
        'models/apart.py',
        'models/autograd_graph.py',
        'compat.py',
        'near_names.py',
        'process_ranks.py',
        'registry.py',
        'releases.py',
        'whole_files.py',
    ):
        (tmp_path / 'mmkd' / name).write_text('')
    source.write_text('def f(x: int, *, y: str = "a") -> None:\n    """What f does."""\n\ndef _g(): ...\n')
    before = pages(tmp_path)['api/functional.md']
    assert "def f(x: int, *, y: str = 'a') -> None" in before and 'What f does.' in before and '_g' not in before
    source.write_text(source.read_text().replace('does', 'does now'))
    assert pages(tmp_path)['api/functional.md'] != before


def test_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(['--out', str(tmp_path)])
    assert '11 pages' in capsys.readouterr().out
    assert len(list(tmp_path.rglob('*.md'))) == 11
