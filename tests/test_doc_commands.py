"""Every command in README and docs is parsed by the tool's own parser, and every tool named there is really run."""

import argparse
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
from test_docs import PAGES, ROOT, blocks, commands

# Tool -> the test that runs it, or for a thin tool the function behind it, to its end. Slurm's are run with a made
# `srun`, the set-up with a made `pip`, and the quick start at the size of a few images.
REALLY_RUN = {
    'tools/benchmark_cost.py': 'test_testing/test_benchmark_cost.py',
    'tools/check_config.py': 'test_engine/test_config_check.py',
    'tools/compare_methods.py': 'test_testing/test_compare_methods.py',
    'tools/dist_test.sh': 'test_shell_tools.py',
    'tools/dist_train.sh': 'test_shell_tools.py',
    'tools/eval_kitti.py': 'test_tools/test_eval_kitti.py',
    'tools/export_student.py': 'test_engine/test_export.py',
    'tools/kitti_to_coco.py': 'test_tools/test_kitti_to_coco.py',
    'tools/new_config.py': 'test_tools/test_new_config.py',
    'tools/quickstart.sh': 'test_testing/test_quickstart.py',
    'tools/run_tests.sh': 'test_shell_tools.py',
    'tools/setup_env.sh': 'test_setup_env.py',
    'tools/slurm_test.sh': 'test_shell_tools.py',
    'tools/slurm_train.sh': 'test_shell_tools.py',
    'tools/test.py': 'test_tools/test_train_and_test.py',
    'tools/train.py': 'test_tools/test_train_and_test.py',
    'tools/visualize_distillation.py': 'test_tools/test_visualize_distillation.py',
}
SHELL_ONLY = ('tools/run_tests.sh', 'tools/setup_env.sh')


class Parsed(BaseException):
    """The command line was accepted; the tool goes no further."""


def behind(words: list[str]) -> tuple[Path, list[str]] | None:
    """Python file and arguments that a documented command ends in; None for other people's commands."""
    if words[0] in ('python', 'python3'):
        words = words[1:]
    if words[:1] == ['-m'] and words[1].startswith('mmkd.'):
        return ROOT / (words[1].replace('.', '/') + '.py'), words[2:]
    tool, *rest = words or ['']
    if not tool.startswith('tools/') or tool in SHELL_ONLY:
        return None
    if tool == 'tools/quickstart.sh':
        return ROOT / 'mmkd/testing/quickstart.py', rest
    name = ROOT / 'tools' / (Path(tool).stem.replace('dist_', '').replace('slurm_', '') + '.py')
    if 'slurm_' in tool:  # PARTITION JOB CONFIG WORK_DIR|CHECKPOINT
        rest = [rest[2], *(['--work-dir'] if 'train' in tool else []), *rest[3:]]
    elif 'dist_' in tool:  # CONFIG [CHECKPOINT] GPUS
        place = 1 if 'train' in tool else 2
        assert rest[place].isdigit(), f'{" ".join(words)}: number of processes expected'
        rest = [*rest[:place], *rest[place + 1 :]]
    return name, rest


def refusal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the tool's own parser says against a command; None where it takes it."""
    found = behind(words)
    if found is None:
        return None
    file, arguments = found
    whole = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args: list | None = None, namespace: object = None) -> NoReturn:
        whole(self, args, namespace)
        raise Parsed

    said = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        # a shell variable stands for KEY=VALUE where settings are expected
        patch.setattr(sys, 'argv', [str(file), *(re.sub(r'^\$\w+$', 'a=1', word) for word in arguments)])
        try:
            runpy.run_path(str(file), run_name='__main__')
        except Parsed:
            return None
        except SystemExit as stop:
            return None if stop.code == 0 else f'{" ".join(words)}: {said.getvalue().strip().splitlines()[-1]}'
    return f'{" ".join(words)}: nothing was parsed'


def inline(page: Path) -> Iterator[str]:
    """Commands in running text: `python tools/...`, `tools/... --option`, `python -m mmkd...`."""
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    for code in re.findall(r'`([^`]+)`', text):
        if re.match(r'(python (tools/|-m mmkd\.)|tools/\w+\.(py|sh) )', code) and '...' not in code:
            yield code.replace('\n', ' ')


@cache
def documented(page: Path) -> tuple[tuple[str, ...], ...]:
    found = [words for block in blocks(page, 'bash') for words in commands(block)]
    for text in inline(page):
        found += [words for words in commands(text) if words[1] != '-m' or len(words) > 3]
    return tuple(tuple(words) for words in found)


def is_mention(words: tuple[str, ...]) -> bool:
    """Whether text names a tool and an option without being a command, as in `tools/test.py --show-dir`."""
    return words[0].startswith('tools/') and words[0].endswith('.py')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_accepted_by_the_tools_own_parser(page: Path, monkeypatch: pytest.MonkeyPatch):
    whole = [words for words in documented(page) if not is_mention(words)]
    assert [text for words in whole if (text := refusal(list(words), monkeypatch))] == []


@pytest.mark.parametrize(
    ('command', 'complaint'),
    [
        ('python tools/train.py', 'required: config'),
        ('tools/dist_test.sh c.py c.pth 2 --nothing', 'unrecognized arguments: --nothing'),
        ('GPUS=8 tools/slurm_train.sh part job c.py work --resmue', 'unrecognized arguments: --resmue'),
        ('tools/quickstart.sh --format voc', 'invalid choice'),
        ('python -m mmkd.testing.report', 'required: '),
        ('python tools/check_config.py c.py --diagnose many', 'invalid int value'),
    ],
)
def test_a_wrong_command_is_refused(command: str, complaint: str, monkeypatch: pytest.MonkeyPatch):
    (words,) = commands(command)
    assert complaint in refusal(words, monkeypatch)


def test_every_documented_tool_is_run_by_a_test():
    named = {word for page in PAGES for words in documented(page) for word in words[:2] if word.startswith('tools/')}
    assert sorted(named - set(REALLY_RUN)) == []
    for tool, test in REALLY_RUN.items():
        stem = Path(tool).stem.removeprefix('slurm_').removeprefix('dist_')
        assert stem in (ROOT / 'tests' / test).read_text(encoding='utf-8'), f'{test} does not run {tool}'
