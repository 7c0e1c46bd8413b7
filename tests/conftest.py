"""Fixtures that all tests share."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import mmengine.config.config
import numpy as np
import pytest
import torch
import yapf.yapflib.yapf_api

import mmkd.compat  # noqa: F401  (makes mmrazor importable, before any test module imports it)
from mmkd.testing.data import shared_data

torch.set_num_threads(1)  # several workers share the cores; more threads only wait for each other
# no time limit (the machine is shared), and the same examples every time: a failure can be seen again
hypothesis.settings.register_profile('tests', deadline=None, derandomize=True)
hypothesis.settings.load_profile('tests')
gc.freeze()  # every data set that MMEngine builds collects garbage: not among what the imports made

# The files that take longest. Two processes share the files of a whole run; a long one at the end leaves one idle.
LONG_FILES = (
    *('test_mim.py', 'test_configs.py', 'test_train_and_test.py', 'test_resumed_run.py', 'test_two_processes.py'),
    *('test_quickstart.py', 'test_ending.py', 'test_crash.py', 'test_packaging.py', 'test_worker.py'),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the rest in its order."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES))


@pytest.fixture(autouse=True, scope='session')
def plain_config_texts() -> Iterator[None]:
    """Runs in this process write their configs as they are: laying one out takes yapf seconds.

    Tools that run as processes of their own lay them out.
    """

    def unformatted(text: str, *args: Any, **kwargs: Any) -> tuple[str, bool]:
        return text, True

    unformatted.replaced = yapf.yapflib.yapf_api.FormatCode
    names = [(yapf.yapflib.yapf_api, 'FormatCode')]
    if hasattr(mmengine.config.config, 'FormatCode'):  # MMEngine up to 0.10.7
        names.append((mmengine.config.config, 'FormatCode'))
    with pytest.MonkeyPatch.context() as patch:
        for module, name in names:
            patch.setattr(module, name, unformatted)
        yield


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """Configurations name MMDetection's classes without a scope, as in a Runner."""
    import mmdet.utils
    from mmengine.logging import MessageHub
    from mmengine.registry import DefaultScope

    mmdet.utils.register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield
    MessageHub._instance_dict.clear()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    _seed()


@pytest.fixture(autouse=True, scope='module')
def seeded_module() -> None:
    """So do fixtures that a whole module shares, whatever the worker ran before."""
    _seed()


@pytest.fixture
def data_path() -> 'callable':
    """Path of a shared data set by name; skips where it is absent."""

    def find(name: str) -> Path:
        try:
            return shared_data(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    return find
