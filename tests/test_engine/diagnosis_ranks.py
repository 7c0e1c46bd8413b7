"""One of two processes of `test_diagnosis.py`: a DDP step with and without a diagnosis.

Run as `python diagnosis_ranks.py RANK CONFIG FOLDER`.
"""

import copy
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter('ignore')

import torch  # noqa: E402

torch.set_num_threads(1)

import mmdet.utils  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import MMDistributedDataParallel  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from mmengine.runner import Runner, set_random_seed  # noqa: E402

import mmkd.engine.diagnosis as diagnosis  # noqa: E402


def numbers(reading: diagnosis.Reading) -> dict[str, float]:
    """The measured numbers by name."""
    return {f'{type(owner).__name__}.{name}': getattr(owner, name) for owner, name in reading.numbers()}


def train(cfg: Config, rank: int, measured: bool) -> tuple[str, dict, dict]:
    """One step; returns the weights' digest, this process's own numbers and their mean over both."""
    set_random_seed(3)  # the pipeline's flips draw from NumPy
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    ddp = MMDistributedDataParallel(model.train())
    data = next(iter(Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)))
    data = {key: value[rank : rank + 1] for key, value in data.items()}
    wrapper = build_optim_wrapper(ddp, dict(optimizer=dict(type='SGD', lr=0.01)))
    probe, own, mean = diagnosis.DiagnosisProbe(model), {}, {}
    if measured:
        probe.arm()
    ddp.train_step(data, wrapper)
    if measured:
        own = numbers(probe.reading)
        mean = numbers(probe.take())
    digest = hashlib.sha256()
    for value in model.parameters():
        digest.update(value.detach().numpy().tobytes())
    return digest.hexdigest(), own, mean


def main() -> None:
    """Both ways, then write what came out."""
    rank, config, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    mmdet.utils.register_all_modules()
    cfg = Config.fromfile(config)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.train_dataloader.batch_sampler = None
    weights, own, mean = train(cfg, rank, True)
    without, _, _ = train(cfg, rank, False)
    result = dict(weights=weights, weights_without=without, own=own, mean=mean)
    (folder / f'rank{rank}.json').write_text(json.dumps(result))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may wait forever for a process that has already left


if __name__ == '__main__':
    main()
