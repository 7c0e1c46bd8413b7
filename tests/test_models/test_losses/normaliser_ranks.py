"""Worker of `test_two_processes_normalisers.py`: every loss with a normaliser, on one process's share of three images.

Run as `python normaliser_ranks.py RANK FILE OUT DEVICE`, in two processes.
"""

import os
import sys
import warnings
from collections.abc import Callable

warnings.simplefilter('ignore')

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from mmkd.models.losses.decoupled_logit_loss import DecoupledLogitLoss  # noqa: E402
from mmkd.models.losses.lp_loss import NormalizedLpLoss  # noqa: E402
from mmkd.models.losses.masked_feature_loss import MaskedFeatureLoss  # noqa: E402
from mmkd.models.losses.soft_target_loss import SoftTargetLoss  # noqa: E402
from mmkd.models.losses.ssim_loss import SSIMLoss  # noqa: E402

IMAGES, ROWS, CHANNELS, SIZE = 3, 4, 3, (9, 12)
SHARES = (slice(0, 1), slice(1, 3))  # images of each process
FEATURE_LOSSES: dict[str, Callable[[], nn.Module]] = {
    'ssim': lambda: SSIMLoss(data_range=1.0, window_size=5),
    'ssim_valid': lambda: SSIMLoss(data_range=1.0, window_size=3, padding='valid'),
    'ssim_plain': lambda: SSIMLoss(data_range=1.0, window_size=5, fused=False),
    'l1': lambda: NormalizedLpLoss(p=1),
    'l2': lambda: NormalizedLpLoss(p=2),
    'inside': lambda: MaskedFeatureLoss(gate=False),
    'background': lambda: MaskedFeatureLoss(gate=False, background_weight=0.3),
}
LOGIT_LOSSES: dict[str, Callable[[], nn.Module]] = {
    'decoupled': lambda: DecoupledLogitLoss(mode='softmax'),
    'decoupled_dense': lambda: DecoupledLogitLoss(mode='sigmoid'),
    'soft': lambda: SoftTargetLoss(mode='softmax'),
    'soft_dense': lambda: SoftTargetLoss(mode='sigmoid'),
}
CASES = (*FEATURE_LOSSES, *LOGIT_LOSSES)
SHAPES = ('unequal', 'padded', 'empty')


def masks(shape: str) -> Tensor:
    """(N, 1, H, W): weights that are a few times larger in one process; with padding; or 0 in one process."""
    weight = torch.rand(IMAGES, 1, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight *= torch.tensor([0.1, 0.9, 0.6], dtype=torch.float64).view(-1, 1, 1, 1)
    if shape == 'padded':
        weight[0, :, 5:], weight[2, :, :, 10:] = -1, -1
    elif shape == 'empty':
        weight[0] = 0
    return weight


def labels(shape: str) -> Tensor:
    """(N, P) classes of rows of a dense head, 3 for background: few objects in the first image."""
    target = torch.tensor([[0, 3, 3, 2], [1, 0, 2, 3], [0, 1, 1, 3]])
    if shape == 'padded':
        target[0, 1:3], target[1, 0] = -1, -1
    elif shape == 'empty':  # one object in all, so that the mean over two processes is below 1
        target[:] = 3
        target[2, 1] = 1
    return target


def whole_batch(case: str, shape: str) -> dict[str, Tensor]:
    """What the loss gets for all images; tensors whose first axis is the image."""
    generator = torch.Generator().manual_seed(0)
    size = (ROWS, CHANNELS) if case in LOGIT_LOSSES else (CHANNELS, *SIZE)
    student, teacher = (torch.randn(IMAGES, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    if case in FEATURE_LOSSES:
        return dict(preds_S=student, preds_T=teacher, mask=masks(shape))
    highest = CHANNELS if case.endswith('dense') else CHANNELS - 1  # background: beside the logits, or the last of them
    return dict(preds_S=student, preds_T=teacher, labels=labels(shape).clamp(max=highest))


class Adapted(nn.Module):
    """A loss behind a layer whose gradients DDP averages."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.rows = case in LOGIT_LOSSES
        torch.manual_seed(5)
        self.layer = nn.Linear(CHANNELS, CHANNELS) if self.rows else nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.loss = (LOGIT_LOSSES if self.rows else FEATURE_LOSSES)[case]()

    def forward(self, preds_S: Tensor, preds_T: Tensor, **given: Tensor) -> Tensor:
        """(N, P, C) logits or (N, C, H, W) maps -> scalar."""
        student = self.layer(preds_S)
        if self.rows:  # (N, P, C) -> (N * P, C)
            student, preds_T = student.flatten(0, 1), preds_T.flatten(0, 1)
            given = {name: value.flatten() for name, value in given.items()}
        return self.loss(student, preds_T, **given)


def result(case: str, shape: str, share: slice = slice(None), device: str = 'cpu', ddp: bool = False) -> dict:
    """Loss and gradients of a share of the images."""
    model = Adapted(case).double().to(device)
    wrapped = DistributedDataParallel(model) if ddp else model
    loss = wrapped(**{name: value[share].to(device) for name, value in whole_batch(case, shape).items()})
    loss.backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return dict(loss=loss.detach().cpu(), gradients=gradients)


def main() -> None:
    """Run all cases and write what came out."""
    rank, store, out, device = sys.argv[1:]
    rank, backend = int(rank), 'nccl' if device == 'cuda' else 'gloo'
    torch.set_num_threads(1)
    if device == 'cuda':
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend, init_method=f'file://{store}', rank=rank, world_size=2)
    found = {
        f'{case}-{shape}': result(case, shape, SHARES[rank], device, ddp=True) for case in CASES for shape in SHAPES
    }
    torch.save(found, out)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may wait forever for a process that has already left


if __name__ == '__main__':
    main()
