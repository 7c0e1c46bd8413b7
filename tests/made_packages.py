"""Packages built from a copy of the checkout, which holds one more config."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('configs', 'mmkd', 'requirements', 'tools')
PLANTED = 'configs/planted/planted_by_a_test.py'


def copy_checkout(folder: Path) -> Path:
    """The files that packaging reads, without what an editable install or a build left among them."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    planted = folder / PLANTED
    planted.parent.mkdir()
    planted.write_text("planted = 'found'\n")
    return folder


def backend(source: Path, function: str, out: Path) -> Path:
    """Calls a function of the build backend, as pip does without isolation; returns the file it made."""
    code = f'import sys, setuptools.build_meta as b; print(b.{function}(sys.argv[1]))'
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, '-c', code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def files_in(wheel: Path) -> set[str]:
    """Names of the files in a wheel, without its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}


def metadata_of(wheel: Path) -> dict:
    """Metadata of a wheel; fields that occur several times as lists."""
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    message = Parser().parsestr(archive.read(name).decode())
    return {key: message.get_all(key) for key in set(message.keys())}


def files_below(folder: Path) -> set[str]:
    """Relative names of the files that belong into a package."""
    paths = (path for path in folder.rglob('*') if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return {name for name in names if '__pycache__' not in name and not name.endswith('.pyc')}
