"""Worker of `test_two_processes.py`: one step of a doubled batch by two processes, or by one.

Run as `python two_processes.py RANK WORLD_SIZE FILE OUT DEVICE CASE...`; a case is `family` or `family:method`, the
device `cpu` (with gloo) or `cuda` (one a process, with NCCL).
"""

import copy
import os
import sys
import warnings

warnings.simplefilter('ignore')

import torch  # noqa: E402

torch.set_num_threads(1)

import mmdet.utils  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import MMDistributedDataParallel  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

from mmkd.models.connectors.feature_resampler import FeatureResampler  # noqa: E402
from mmkd.testing.methods import config_root, distilled_model, needs_teacher  # noqa: E402
from mmkd.testing.toy_detectors import toy_detector  # noqa: E402

SMALL = dict(width=8, channels=16, convs=1)


# Families whose own losses are normalised within a process: only their distillation losses are compared.
LOCAL = ('retinanet', 'faster-rcnn')


def keep_every_proposal(student: Config, device: str) -> None:
    """Which ones are sampled depends on a process's random numbers, which ones are best on a GPU's rounding."""
    student.train_cfg.rcnn.sampler.num = 10**6
    if device == 'cuda':
        student.train_cfg.rpn_proposal.update(nms_pre=10**6, max_per_img=10**6, nms=dict(type='nms', iou_threshold=1.0))


def build(case: str, device: str) -> torch.nn.Module:
    """An algorithm with frozen BatchNorm, every loss at its full weight; a teacher has weights of its own."""
    family, _, method = case.partition(':')
    student = toy_detector(family, **SMALL)
    student.backbone.norm_eval = True
    if method.endswith('roi'):
        keep_every_proposal(student, device)
    if needs_teacher(method or 'ssim'):
        distiller = Config.fromfile(str(config_root() / '_base_' / 'methods' / f'{method or "ssim"}.py')).distiller
        torch.manual_seed(77)
        teacher = MODELS.build(toy_detector(family, **SMALL))
        teacher.init_weights()
        cfg = dict(type='mmkd.TeacherStudentDistill', architecture=student, teacher=teacher, distiller=distiller)
    else:
        cfg = distilled_model(student, method)
    cfg['distiller'].pop('schedules', None)  # they begin at 0
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    for name, module in model.named_modules():
        if name.endswith('gfl_cls'):
            # GFL clamps its sum of scores at 1, which an untrained head stays below: then its own loss is a local one
            torch.nn.init.zeros_(module.bias)
    model.train()
    for module in model.modules():
        # the resampler's masks are drawn by each rank for itself
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | FeatureResampler):
            module.eval()
    return model


def nothing(loss: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """A loss of 0 with gradients of 0."""
    return [0 * part for part in loss] if isinstance(loss, list) else 0 * loss


def step(case: str, rank: int, world_size: int, device: str) -> dict:
    """Losses and gradients of this process's share of two images, without `find_unused_parameters`."""
    model = build(case, device).to(device)
    torch.manual_seed(3)
    data = demo_mm_inputs(2, [(3, 128, 160)] * 2, num_items=[3, 2], num_classes=4)
    if world_size > 1:
        data = {name: value[rank : rank + 1] for name, value in data.items()}
    wrapped = MMDistributedDataParallel(model) if world_size > 1 else model
    prepared = model.data_preprocessor(copy.deepcopy(data), True)
    losses = wrapped(**prepared, mode='loss')
    if case.split(':')[0] in LOCAL:
        # still in the graph: what no loss at all reaches must stall DDP, as it would in a training
        losses = {name: value if name.startswith('distill.') else nothing(value) for name, value in losses.items()}
    total, logged = model.parse_losses(losses)
    total.backward()
    grads = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return dict(loss=float(total.detach()), names=sorted(logged), grads=grads)


def main() -> None:
    """Run all cases and write what came out."""
    rank, world_size, store, out, device, *cases = sys.argv[1:]
    rank, world_size = int(rank), int(world_size)
    if device == 'cuda':
        torch.cuda.set_device(rank)
        torch.backends.cudnn.allow_tf32 = False  # on by default; what is compared here is float32
    if world_size > 1:
        backend = 'nccl' if device == 'cuda' else 'gloo'
        torch.distributed.init_process_group(backend, init_method=f'file://{store}', rank=rank, world_size=world_size)
    mmdet.utils.register_all_modules()
    torch.save({case: step(case, rank, world_size, device) for case in cases}, out)
    if world_size > 1:
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads may wait forever for a process that has already left


if __name__ == '__main__':
    main()
