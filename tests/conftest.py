"""Fixtures that all tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mmkd.compat  # noqa: F401  (makes mmrazor importable, before any test module imports it)
from mmkd.testing.data import shared_data

torch.set_num_threads(1)  # several workers share the cores; more threads only wait for each other


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


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def data_path() -> 'callable':
    """Path of a shared data set by name; skips where it is absent."""

    def find(name: str) -> Path:
        try:
            return shared_data(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    return find
