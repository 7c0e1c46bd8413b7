"""The list of `tests/mutations.py` fits the code; that every mutation is caught takes minutes and is not tried here."""

import subprocess
import sys

import pytest

from .mutations import MUTATIONS, ROOT, main


@pytest.mark.parametrize('name', MUTATIONS)
def test_the_text_is_there_once(name: str) -> None:
    mutation = MUTATIONS[name]
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new not in (mutation.old, '')


COLLECT = """
import sys, pytest
sys.path.insert(0, 'tests')
from mutations import MUTATIONS
for name, mutation in MUTATIONS.items():
    words = ['--collect-only', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', mutation.test, '-k', mutation.chosen]
    if pytest.main(words) != 0:
        sys.exit(f'no test for {name!r}')
"""


def test_the_tests_exist() -> None:
    done = subprocess.run([sys.executable, '-c', COLLECT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match='No mutation'):
        main(['nothing'])
