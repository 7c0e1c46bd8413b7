"""Packaging of mmkd; the settings of the tools are in pyproject.toml.

`mmkd/.mim` holds `configs`, `tools` and `model-index.yml`, where mim, MMEngine and `mmkd::` look for
them. An editable install links it to the checkout, a wheel contains a copy.

The OpenMMLab stack is deliberately no requirement of the package: its maintained and its original
distributions provide the same modules under different names, so naming either of them here would break
an environment with the other. `tools/setup_env.sh` installs the stack; `docs/installation.md` explains.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

ROOT = Path(__file__).resolve().parent
MIM_ITEMS = ('configs', 'tools', 'model-index.yml')
IGNORED = shutil.ignore_patterns('__pycache__', '*.pyc', '.*')


def read_version() -> str:
    """Returns `__version__` of mmkd/__init__.py, without importing it."""
    text = (ROOT / 'mmkd' / '__init__.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'", text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('mmkd/__init__.py has no line "__version__ = \'...\'"')
    return match.group(1)


def read_requirements(name: str) -> list[str]:
    """Returns the requirements in requirements/`name`.txt, without comments and options."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    stripped = (line.split(' #')[0].strip() for line in lines)
    return [line for line in stripped if line and not line.startswith(('#', '-'))]


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def copy_mim(mim: Path) -> None:
    """Fills the folder `mim` with copies: for a wheel."""
    remove(mim)
    mim.mkdir(parents=True)
    for name in MIM_ITEMS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, mim / name, ignore=IGNORED)
        else:
            shutil.copy2(source, mim / name)


def link_mim(mim: Path) -> None:
    """Fills the folder `mim` with relative links: for an editable install. Copies where links are refused."""
    remove(mim)
    mim.mkdir(parents=True)
    try:
        for name in MIM_ITEMS:
            target = ROOT / name
            (mim / name).symlink_to(os.path.relpath(target, mim), target_is_directory=target.is_dir())
    except OSError:  # Windows without the right to make links
        copy_mim(mim)


class BuildPy(build_py):
    """Adds `mmkd/.mim`: to the checkout when editable (PEP 660), else to what is built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            link_mim(ROOT / 'mmkd' / '.mim')
        else:
            copy_mim(Path(self.build_lib) / 'mmkd' / '.mim')


class Develop(develop):
    """Adds `mmkd/.mim` to the checkout: for `python setup.py develop`, which runs no `build_py`."""

    def run(self) -> None:
        link_mim(ROOT / 'mmkd' / '.mim')
        super().run()


EXTRAS = {name: read_requirements(name) for name in ('tests', 'export', 'classification')}

setup(
    name='mmkd',
    version=read_version(),
    description='Knowledge distillation of object detectors inside the OpenMMLab stack',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='knowledge distillation, object detection, MMDetection, MMRazor, OpenMMLab',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmkd', 'mmkd.*']),
    package_data={'mmkd': ['py.typed']},
    include_package_data=False,
    python_requires='>=3.10',
    install_requires=read_requirements('runtime'),
    extras_require={**EXTRAS, 'all': sorted({line for lines in EXTRAS.values() for line in lines})},
    cmdclass={'build_py': BuildPy, 'develop': Develop},
    zip_safe=False,
)
