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


def test_everything_runs_on_the_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda device=None: 'Pretended GPU')
    text = markdown({'config.py': dict(load_seconds=0.002, train_seconds=0.02, share=0.1)})
    assert 'Pretended GPU' not in text and 'CPU cores' in text
    assert 'loading and training on one thread of the CPU' in text
    monkeypatch.setattr('sys.argv', ['benchmark_data', '--help'])
    with pytest.raises(SystemExit):
        benchmark_data.main()
    assert 'both on one thread of the CPU' in capsys.readouterr().out


def test_table_says_what_was_found():
    text = markdown({'a/b/config.py': dict(load_seconds=0.002, train_seconds=0.02, share=0.1)})
    assert '| `config.py` | 2.00 | 20.00 | 0.100 |' in text
