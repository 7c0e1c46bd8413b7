"""The list of `tests/mutations.py` fits the code; that every mutation is caught takes minutes and is not tried here."""

import re
import subprocess
import sys

import pytest

from .mutations import MUTATIONS, ROOT, main


@pytest.mark.parametrize('name', MUTATIONS)
def test_the_text_is_there_once(name: str) -> None:
    mutation = MUTATIONS[name]
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new not in (mutation.old, '')


def test_the_tests_exist() -> None:
    files = sorted({mutation.test for mutation in MUTATIONS.values()})
    words = ['--collect-only', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', *files]
    done = subprocess.run([sys.executable, '-m', 'pytest', *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]
    ids = [line for line in done.stdout.splitlines() if '::' in line]
    for name, mutation in MUTATIONS.items():
        of_file = [one for one in ids if one.startswith(mutation.test)]
        assert any(chooses(mutation.chosen, one) for one in of_file), f'no test for {name!r}'


def chooses(expression: str, test_id: str) -> bool:
    """What pytest's `-k` does with words, `and`, `or`, `not` and brackets; nothing chooses all."""
    words = re.sub(r'\b(?!(?:and|or|not)\b)[\w-]+', lambda word: str(word[0].lower() in test_id.lower()), expression)
    return not expression or eval(words)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match='No mutation'):
        main(['nothing'])
