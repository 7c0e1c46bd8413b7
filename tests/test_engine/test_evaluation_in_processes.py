"""Scores beside a run, where one process fails: the others must not wait for it in a collective."""

from collections.abc import Sequence

import pytest
from mmengine.evaluator import BaseMetric, Evaluator

from mmkd.engine import small_evaluation
from mmkd.engine.small_evaluation import _all_reach, _metrics_or_error


def out_of_memory() -> None:
    raise MemoryError('too large')


def test_what_one_process_meets_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def gather(text: str | None) -> list[str | None]:
        told.append(text)
        return [text, 'OutOfMemoryError: GPU 1 is full']

    monkeypatch.setattr(small_evaluation, 'all_gather_object', gather)
    with pytest.raises(RuntimeError, match=r'process 1 failed \(OutOfMemoryError: GPU 1 is full\)'):
        _all_reach(lambda: None)
    with pytest.raises(MemoryError, match='too large'):  # its own, with its own traceback
        _all_reach(out_of_memory)
    assert told == [None, 'MemoryError: too large']


class Failing(BaseMetric):
    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict:
        raise LookupError(f'no category of {len(results)}')


class Counting(Failing):
    def compute_metrics(self, results: list) -> dict:
        return dict(count=len(results))


def test_a_metric_that_fails_reaches_the_collective_before_it_raises() -> None:
    evaluator = Evaluator([Failing(prefix='a'), Counting(prefix='b')])
    for _ in range(2):
        evaluator.process(data_samples=[], data_batch=None)
    with pytest.raises(LookupError, match='no category of 2'):
        _metrics_or_error(evaluator, 2)
    assert evaluator.metrics[1].results == []  # it was computed behind the one that failed
    evaluator = Evaluator([Counting(prefix='b')])
    evaluator.process(data_samples=[], data_batch=None)
    assert _metrics_or_error(evaluator, 1) == {'b/count': 1}
