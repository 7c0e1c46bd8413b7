"""The documentation is true: files exist, options exist, examples run, the site builds."""

import contextlib
import copy
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner

from mmkd.engine.launch import load_config
from mmkd.engine.preflight import check_classes, check_distiller
from mmkd.registry import MODELS
from mmkd.testing.quickstart import parse_options
from mmkd.testing.shrink import shrink

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / 'README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'docs' / 'results').glob('*.md')),
    *sorted((ROOT / 'configs').glob('*/README.md')),
]
PAGES += [ROOT / name for name in ('CHANGELOG.md', 'CONTRIBUTING.md') if (ROOT / name).is_file()]

FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)')
# A path inside the project; what is in angle brackets, or has a star, is a pattern for the reader.
PATH = re.compile(r'(?<![\w/.:<])((?:configs|tools|mmkd|docs|tests|requirements)/[\w./+-]*[\w+-])(?![\w/<*]|\.\w|::)')

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding='utf-8')


def blocks(page: Path, language: str) -> list[str]:
    return [body for _, kind, body in FENCE.findall(text_of(page)) if kind == language]


# ---- files ----------------------------------------------------------------------------------------------------------


def missing_paths(text: str) -> list[str]:
    """Paths of the project that a text names and that do not exist; what a run writes is not the project's."""
    paths = {path for path in PATH.findall(text) if not path.startswith('docs/results/')}
    return sorted(path for path in paths if not (ROOT / path).exists())


@each_page
def test_named_files_exist(page: Path):
    assert missing_paths(text_of(page)) == []


def test_missing_file_is_noticed():
    text = 'see `tools/trian.py`, configs/ssim/README.md, `mmkd/nothing.py` and work_dirs/tools/x.py'
    assert missing_paths(text) == ['mmkd/nothing.py', 'tools/trian.py']


@each_page
def test_links_lead_somewhere(page: Path):
    targets = [link.split('#')[0] for link in LINK.findall(FENCE.sub('', text_of(page))) if '://' not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


# ---- commands -------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command, continued lines joined, comments and leading variables dropped."""
    for line in text.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
            words.pop(0)
        if words:
            yield words


@cache
def help_of(tool: str) -> str:
    """What `python TOOL --help` prints; the launchers pass everything on to the tool behind them."""
    name = tool.replace('dist_', '').replace('slurm_', '').removesuffix('.sh')
    out = io.StringIO()
    argv, sys.argv = sys.argv, [f'{name}.py', '--help']
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            if tool == 'tools/quickstart.sh':
                parse_options(['--help'])
            else:
                runpy.run_path(str(ROOT / (name if name.endswith('.py') else f'{name}.py')), run_name='__main__')
    finally:
        sys.argv = argv
    return out.getvalue()


def command_problems(words: list[str]) -> list[str]:
    """What is wrong with a command of this project's tools."""
    if words[0] == 'python' and len(words) > 1:
        words = words[1:]
    tool = words[0]
    if not tool.startswith('tools/'):
        return []
    if not (ROOT / tool).is_file():
        return [f'{tool} does not exist']
    if tool.startswith(('tools/run_tests', 'tools/setup_env', 'tools/_')):
        return []
    options = {word.split('=')[0] for word in words[1:] if word.startswith('--')}
    return [f'{tool} has no {option}' for option in sorted(options) if option not in help_of(tool)]


@each_page
def test_commands_and_their_options_exist(page: Path):
    found = [
        problem for block in blocks(page, 'bash') for words in commands(block) for problem in command_problems(words)
    ]
    assert found == []


@pytest.mark.parametrize(
    ('command', 'problem'),
    [
        ('python tools/train.py x.py --resmue', 'has no --resmue'),
        ('A=1 tools/dist_train.sh x.py 2 --ampp', 'has no --ampp'),
        ('tools/quickstart.sh --date x', 'has no --date'),
        ('python tools/trian.py x.py', 'does not exist'),
    ],
)
def test_wrong_command_is_noticed(command: str, problem: str):
    (words,) = commands(command)
    assert any(problem in text for text in command_problems(words))


def test_right_command_passes():
    (words,) = commands('NNODES=2 tools/dist_train.sh x.py 8 \\\n    --amp --work-dir w  # comment --nothing')
    assert command_problems(words) == []


# ---- examples -------------------------------------------------------------------------------------------------------


def example_files(page: Path) -> dict[str, str]:
    """Code blocks that begin with `# file: NAME`."""
    found = [re.match(r'# file: (\S+)\n(.*)', body, re.DOTALL) for body in blocks(page, 'python')]
    return {match[1]: match[2] for match in found if match}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory of a user who follows a page; `my` is on Python's path, as the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / 'my'))
    (tmp_path / 'my').mkdir()
    return tmp_path


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def training_step(cfg: Config, folder: Path) -> dict[str, torch.Tensor]:
    small = shrink(cfg, folder / 'made')
    torch.manual_seed(1)
    MessageHub.get_current_instance().update_info_dict(dict(epoch=1, iter=0, max_epochs=12, max_iters=12))
    model = ROOT_MODELS.build(copy.deepcopy(small.model))
    model.init_weights()
    model.train()
    batch = next(iter(Runner.build_dataloader(small.train_dataloader, seed=0)))
    return model.train_step(batch, build_optim_wrapper(model, copy.deepcopy(small.optim_wrapper)))


def assert_distils(logs: dict[str, torch.Tensor], loss: str) -> None:
    levels = [name for name in logs if name.startswith(f'distill.{loss}_p')]
    assert len(levels) == 5
    assert sum(logs[name].detach() for name in levels) > 0


def test_readme_example_is_short_and_distils(folder: Path):
    files = example_files(ROOT / 'README.md')
    write(files, folder)
    assert len(files['my/distilled.py'].splitlines()) <= 12
    cfg = load_config('my/distilled.py')
    assert list(check_distiller(cfg)) == []
    assert_distils(training_step(cfg, folder), 'loss_ssim')


def test_first_distillation_distils(folder: Path):
    files = example_files(ROOT / 'docs' / 'first_distillation.md')
    assert list(files) == ['my/student.py', 'my/teacher.py', 'my/distilled.py']
    write(files, folder)
    for name in files:
        cfg = load_config(name)
        assert list(check_distiller(cfg)) == []
        assert list(check_classes(cfg)) == []
        assert cfg.train_dataloader.dataset.metainfo.classes == ('RBC', 'WBC', 'Platelets')
    assert load_config('my/teacher.py').model.backbone.depth == 50
    assert_distils(training_step(load_config('my/distilled.py'), folder), 'loss_ssim')


def test_first_distillation_fits_the_real_data(folder: Path, data_path):
    write(example_files(ROOT / 'docs' / 'first_distillation.md'), folder)
    (folder / 'data').mkdir()
    (folder / 'data' / 'bccd').symlink_to(data_path('bccd'))
    cfg = load_config('my/distilled.py')
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    dataset = Runner.build_dataloader(loader, seed=0).dataset
    assert len(dataset) == 205
    assert dataset[0]['data_samples'].gt_instances.labels.max() < 3


def test_own_method_example_trains(folder: Path):
    files = example_files(ROOT / 'docs' / 'own_method.md')
    write(files, folder)
    assert len(files['my/cosine_loss.py'].splitlines()) <= 45
    try:
        cfg = load_config('my/cosine_retinanet_r101_retinanet_r18_fpn_1x_coco.py')
        assert_distils(training_step(cfg, folder), 'loss_cosine')
        loss = MODELS.get('CosineLoss')(loss_weight=2.0).double()
        x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
        cells = [1 - x[n, :, i, j] @ y[n, :, i, j] / (x[n, :, i, j].norm() * y[n, :, i, j].norm())
                 for n in range(2) for i in range(4) for j in range(5)]  # fmt: skip
        torch.testing.assert_close(loss(x, y), 2 * sum(cells) / len(cells))
        assert loss(x, 3 * x).abs() < 1e-12
        with pytest.raises(ValueError, match='eps'):
            MODELS.get('CosineLoss')(eps=0)
    finally:
        MODELS._module_dict.pop('CosineLoss', None)
        sys.modules.pop('cosine_loss', None)


# ---- the site -------------------------------------------------------------------------------------------------------


def test_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip('mkdocs')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config as load_site

    site = load_site(str(ROOT / 'mkdocs.yml'), site_dir=str(tmp_path), strict=True)
    build(site)
    built = {path.parent.name for path in tmp_path.rglob('index.html')}
    assert {page.stem for page in (ROOT / 'docs').rglob('*.md') if page.stem != 'index'} <= built
    assert '<h3 id="ssim_map">' in (tmp_path / 'api/functional/index.html').read_text(encoding='utf-8')


def test_every_page_is_linked_from_the_index_or_the_readme():
    text = text_of(ROOT / 'docs' / 'index.md') + text_of(ROOT / 'README.md')
    readmes = ''.join(text_of(page) for page in PAGES if page.parent.parent.name == 'configs')
    pages = {page.name for page in (ROOT / 'docs').glob('*.md')} - {'index.md'}
    assert sorted(name for name in pages if name not in text + readmes) == []
