"""What a contributor meets: workflow, pre-commit, changelog and guide say what the project does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def test_the_workflow_runs_what_the_readme_names_as_its_tests() -> None:
    steps = yaml.safe_load(text_of('.github/workflows/ci.yml'))['jobs']['test']['steps']
    assert [step['run'] for step in steps if 'run' in step] == ['.ci/run']
    last = [line for line in text_of('.ci/run').splitlines() if line and not line.startswith('#')][-1]
    script = shlex.split(last)[1].replace('$(dirname ${BASH_SOURCE[0]})', str(ROOT / '.ci'))
    section = re.search(r'## Tests\n+```bash\n(.+?)\n```', text_of('README.md'))
    assert Path(script).resolve() == ROOT / section[1]
    assert os.access(ROOT / '.ci/run', os.X_OK) and os.access(ROOT / section[1], os.X_OK)


def test_the_workflow_has_every_python_that_the_package_names() -> None:
    matrix = yaml.safe_load(text_of('.github/workflows/ci.yml'))['jobs']['test']['strategy']['matrix']
    named = re.findall(r'Programming Language :: Python :: (3\.\d+)', text_of('setup.py'))
    assert matrix['python'] == named


def test_pre_commit_checks_with_the_tools_of_the_tests() -> None:
    repos = yaml.safe_load(text_of('.pre-commit-config.yaml'))['repos']
    hooks = {hook['id'] for repo in repos for hook in repo['hooks']}
    assert {'ruff-check', 'ruff-format', 'shellcheck'} <= hooks
    assert all(re.match(r'v?\d', repo['rev']) for repo in repos), 'a fixed release, not a branch'
    (release,) = re.findall(r'^ruff==(.+)$', text_of('requirements/tests.txt'), re.MULTILINE)
    assert [repo['rev'] for repo in repos if 'ruff' in repo['repo']] == [f'v{release}']


@pytest.mark.parametrize('command', [['check'], ['format', '--check']])
def test_the_code_is_as_ruff_wants_it(command: list[str]) -> None:
    words = [sys.executable, '-m', 'ruff', *command, '--no-cache', '.']
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load(text_of('CITATION.cff'))
    assert {'cff-version', 'message', 'title', 'authors'} <= citation.keys()
    assert citation['license'] == 'Apache-2.0' and 'Apache License' in text_of('LICENSE')


@pytest.mark.parametrize('kind', ['Added', 'Fixed', 'Security'])
def test_the_changelog_keeps_its_form(kind: str) -> None:
    text = text_of('CHANGELOG.md')
    assert len(re.findall(rf'^### {kind}$', text, re.MULTILINE)) == len(re.findall(r'^## \[', text, re.MULTILINE))
    known = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
    assert set(re.findall(r'^### (.+)$', text, re.MULTILINE)) <= known
