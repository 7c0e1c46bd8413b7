"""The benchmark of the data pipeline loads and trains real batches, and tells both apart."""

import time
from pathlib import Path

import pytest

from mmkd.testing import benchmark_data
from mmkd.testing.benchmark_data import markdown, measure
from mmkd.testing.toy_run import make_toy_run


def test_slow_loading_is_seen_as_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = make_toy_run(tmp_path).load()
    assert cfg.model.type == 'mmkd.TeacherStudentDistill'  # whose student is trained alone
    plain = measure(cfg, 1)
    assert plain['load_seconds'] > 0 and plain['train_seconds'] > 0
    assert plain['share'] == pytest.approx(plain['load_seconds'] / plain['train_seconds'])
    batches = benchmark_data.batches

    def slow(cfg):
        for batch in batches(cfg):
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            yield batch

    monkeypatch.setattr(benchmark_data, 'batches', slow)
    assert measure(cfg, 1)['load_seconds'] >= 0.2 / cfg.train_dataloader.batch_size


def test_table_says_what_was_found():
    text = markdown({'a/b/config.py': dict(load_seconds=0.002, train_seconds=0.02, share=0.1)})
    assert '| `config.py` | 2.00 | 20.00 | 0.100 |' in text
