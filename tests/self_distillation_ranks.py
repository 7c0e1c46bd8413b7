"""Run by `test_two_processes_self.py`: losses and gradients of one batch, alone or over two processes.

Usage: python self_distillation_ranks.py <mssd|frskd> <file to write>. `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and
`MASTER_PORT` as torch.distributed wants them.
"""

import os
import sys

import mmkd.compat  # noqa: F401

# isort: split
import mmdet.utils
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS
from torch import distributed

from mmkd.testing.methods import config_root
from mmkd.testing.toy_detectors import toy_detector


def build(method: str) -> torch.nn.Module:
    """FCOS (whose own loss reduces its normalisers) with frozen BatchNorm, under the shipped method file."""
    name = 'mssd' if method == 'mssd' else 'frskd_dense'
    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / f'{name}.py').distiller
    distiller.pop('schedules', None)
    architecture = toy_detector('fcos', width=8, channels=16, convs=1)
    architecture['backbone'].update(norm_eval=True)
    if method == 'mssd':
        model = dict(type='mmkd.MultiScaleSelfDistill')
    else:
        refine = dict(type='mmkd.BiFPNSelfTeacher', out_channels='same', norm='GN')
        model = dict(type='mmkd.SelfTeacherDistill', self_teacher=refine)
    torch.manual_seed(0)
    built = MODELS.build(model | dict(architecture=architecture, distiller=distiller))
    built.init_weights()
    built.train()
    for module in built.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return built


def main(method: str, out: str) -> None:
    """One step on this process's share of two images with different numbers of objects; rank 0 writes."""
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    if world > 1:
        distributed.init_process_group('gloo', rank=rank, world_size=world)
    mmdet.utils.register_all_modules(init_default_scope=True)
    model = build(method)
    torch.manual_seed(7)
    data = demo_mm_inputs(2, [(3, 128, 160)] * 2, num_items=[1, 4], num_classes=4)
    if world > 1:
        data = {name: [value[rank]] for name, value in data.items()}
    prepared = model.data_preprocessor(data, True)
    network = MMDistributedDataParallel(model, find_unused_parameters=False) if world > 1 else model
    losses = network(**prepared, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    values = {}
    for name, value in losses.items():
        value = sum(value) if isinstance(value, list) else value
        value = value.detach().clone()
        if world > 1:
            distributed.all_reduce(value)
        values[name] = value / world
    if rank == 0:
        torch.save(
            dict(losses=values, grads={n: p.grad for n, p in model.named_parameters() if p.grad is not None}), out
        )
    if world > 1:
        distributed.barrier()
        os._exit(0)  # gloo's threads may wait forever for a process that has already left


if __name__ == '__main__':
    main(*sys.argv[1:])
