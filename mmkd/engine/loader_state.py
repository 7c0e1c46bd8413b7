"""Data loading that a resumed run continues exactly: the random state of workers, and a start inside an epoch.

Workers that live through several epochs (MMDetection's default), or feed an endless sampler, carry random state that
MMEngine neither saves nor restores. Here every worker leaves its state behind each batch in memory that it shares with
the training process; a checkpoint takes what belongs to the batches that were trained.
"""

import pickle
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, get_worker_info

from mmkd.engine.random_state import get_random_state, set_random_state

# Bytes of one state: Python's generator takes 3 KiB, NumPy's and torch's 5 KiB each.
SLOT = 1 << 16


class WorkerStates:
    """The random state of every worker behind each of its last batches.

    Args:
        workers: number of workers.
        depth: how many batches of a worker may be loaded ahead of training.
    """

    def __init__(self, workers: int, depth: int) -> None:
        self.workers, self.slots = workers, depth + 2
        self.memory = torch.zeros(workers, self.slots, SLOT, dtype=torch.uint8).share_memory_()
        self.counts = torch.zeros(workers, dtype=torch.int64).share_memory_()

    def note(self) -> None:
        """In a worker: leave the state behind the batch that was made just now."""
        info = get_worker_info()
        if info is None:
            return
        data = pickle.dumps(get_random_state(cuda=False))
        count = int(self.counts[info.id])
        place = self.memory[info.id, count % self.slots]
        place[:8] = torch.frombuffer(bytearray(len(data).to_bytes(8, 'little')), dtype=torch.uint8)
        place[8 : 8 + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.counts[info.id] = count + 1

    def _read(self, worker: int, count: int) -> dict[str, Any] | None:
        if count == 0:
            return None
        place = self.memory[worker, (count - 1) % self.slots].numpy().tobytes()
        return pickle.loads(place[8 : 8 + int.from_bytes(place[:8], 'little')])

    def collect(self, trained: int | None) -> list[dict[str, Any] | None]:
        """States of all workers, the one whose batch comes next first.

        Args:
            trained: batches that were trained since the workers were started; None where all that was loaded was
                trained, and the first worker is the next.
        """
        if trained is None:
            return [self._read(worker, int(self.counts[worker])) for worker in range(self.workers)]
        order = [(trained + i) % self.workers for i in range(self.workers)]
        return [self._read(worker, (trained - worker + self.workers - 1) // self.workers) for worker in order]


class NotingCollate:
    """A loader's `collate_fn` that also leaves the worker's random state behind each batch."""

    def __init__(self, collate: Callable, states: WorkerStates) -> None:
        self.collate, self.states = collate, states

    def __call__(self, items: list) -> Any:
        """The batch."""
        batch = self.collate(items)
        self.states.note()
        return batch


class RestoringInit:
    """A loader's `worker_init_fn` that gives the workers of a resumed run the state they had."""

    def __init__(self, init: Callable | None, states: list[dict[str, Any] | None]) -> None:
        self.init, self.states = init, states

    def __call__(self, worker: int) -> None:
        """Seed the worker as always, then restore its state, if it had one."""
        if self.init is not None:
            self.init(worker)
        if self.states[worker] is not None:
            set_random_state(self.states[worker], cuda=False)


def watch_workers(loader: DataLoader) -> WorkerStates:
    """Let the workers of a loader leave their states; before they are started."""
    states = WorkerStates(loader.num_workers, loader.prefetch_factor or 2)
    loader.collate_fn = NotingCollate(loader.collate_fn, states)
    return states


class ResumedIterator:
    """MMEngine's endless iterator over a loader, in a run that resumes: the random state is restored behind the skip.

    Making an iterator draws a number, and mmengine 0.10.7 loads all skipped images again and so draws more.

    Args:
        inner: MMEngine's iterator.
        skipped: batches that the loop will skip by asking for them (where `inner` has no `skip_iter`).
        state: what `get_random_state` gave.
    """

    def __init__(self, inner: Any, skipped: int, state: dict[str, Any]) -> None:
        self.inner = inner
        self.state: dict[str, Any] | None = state
        self.left = 0 if hasattr(inner, 'skip_iter') else skipped

    def __getattr__(self, name: str) -> Any:
        """Everything else is the iterator's."""
        return getattr(self.inner, name)

    def __next__(self) -> Any:
        """The next batch."""
        if self.left > 0:
            self.left -= 1
        elif self.state is not None:
            if hasattr(self.inner, '_ensure_iterator'):
                self.inner._ensure_iterator()
            set_random_state(self.state)
            self.state = None
        return next(self.inner)


def loads_again(iterator: Any) -> bool:
    """Whether a loop that resumes brings its workers where they were by loading everything again."""
    if not hasattr(iterator, 'skip_iter'):
        return True
    return iterator._resolve_sampler() is None or not iterator._resolve_batch_size()


class LoadingState:
    """What a run's data loading carries from batch to batch, for its checkpoints; made before the first batch.

    Args:
        runner: a Runner whose training loop is built.
    """

    def __init__(self, runner: Runner) -> None:
        self.loop = runner.train_loop
        self.loader = self.loop.dataloader
        self.by_epoch = isinstance(self.loop, EpochBasedTrainLoop)
        self.begin = runner.iter
        lasting = self.loader.persistent_workers if self.by_epoch else not loads_again(self.loop.dataloader_iterator)
        self.states = watch_workers(self.loader) if self.loader.num_workers > 0 and lasting else None
        self._init: Callable | None = self.loader.worker_init_fn
        self._once: dict[str, Any] | None = None

    def collect(self, iteration: int) -> dict[str, Any]:
        """The random state of this process and of its workers.

        Args:
            iteration: number of steps done.
        """
        state = get_random_state()
        if self.states is not None:
            state['workers'] = self.states.collect(None if self.by_epoch else iteration - self.begin)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `collect` was called."""
        set_random_state(state)
        if self.states is not None:
            self._restore_workers(state.get('workers'))
        if not self.by_epoch:
            self.loop.dataloader_iterator = ResumedIterator(self.loop.dataloader_iterator, self.begin, state)
        elif self.states is not None:
            self._once = state  # the workers' start draws a number, as it did in the run's first epoch

    def _restore_workers(self, states: list | None) -> None:
        if not states or len(states) != self.loader.num_workers:
            print_log(
                f'The checkpoint has the random state of {len(states or ())} loader workers, there are '
                f'{self.loader.num_workers} now: the augmentations will not be those of an uninterrupted run.',
                logger='current',
                level=30,
            )
            return
        self.loader.worker_init_fn = RestoringInit(self._init, states)

    def first_batch(self) -> None:
        """Behind the first batch: workers that are started later are seeded as always."""
        self.loader.worker_init_fn = self._init
        if self._once is not None:
            set_random_state(self._once)
            self._once = None
