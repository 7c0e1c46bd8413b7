import pytest
import torch
from torch import nn

from mmkd.testing import measure
from mmkd.testing.measure import model_cost


class _Detector(nn.Module):
    """Notes what is asked of it."""

    def __init__(self, calls):
        super().__init__()
        self.calls, self.weight = calls, nn.Parameter(torch.zeros(3))

    def to(self, device):
        self.calls.append(device)
        return self

    def test_step(self, batch):
        self.calls.append('step')


@pytest.mark.parametrize('gpu', [True, False])
def test_time_is_taken_on_the_device_that_the_hardware_names(monkeypatch, gpu):
    calls = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: calls.append('wait'))
    monkeypatch.setattr(measure, '_multiply_adds', lambda *_: 2e9)
    found = model_cost(_Detector(calls), [{'inputs': None, 'data_samples': None}], repeats=1)
    assert calls == (['cuda', 'step', 'wait', 'step', 'wait'] if gpu else ['step', 'step'])
    assert (found['parameters'], found['gflops']) == (3, 2.0)
