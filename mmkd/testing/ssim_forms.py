"""The forms of the SSIM loss that `mmkd.testing.benchmark_ssim` compares, and how to make each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mmkd.functional import ssim_fused
from mmkd.models.losses.ssim_loss import SSIMLoss

Loss = Callable[[Tensor, Tensor], Tensor]
Form = tuple[str, Callable[[], Loss]]  # kind of input and borders, and how to make the loss
WINDOW = 11
# of each kind the form that times and memory are divided by, and the one that says what is right
OURS = {'same': 'mmkd_same', 'valid': 'mmkd_valid', 'min_max': 'mmkd_min_max_same'}
PLAIN = {'same': 'mmkd_plain_same', 'valid': 'mmkd_plain_valid', 'min_max': 'mmkd_plain_min_max_same'}


def our_loss(padding: str, normalize: str | None = None, fused: bool = True) -> Loss:
    """The loss of this project."""
    return SSIMLoss(data_range=1.0, padding=padding, normalize=normalize, fused=fused)


def kornia_loss(padding: str) -> Loss:
    """kornia's loss."""
    from kornia.losses import ssim_loss

    return lambda x, y: ssim_loss(x, y, WINDOW, padding=padding)


def torchmetrics_loss() -> Loss:
    """torchmetrics' index, as a loss."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return lambda x, y: (1 - ssim(x, y, data_range=1.0)) / 2


def pytorch_msssim_loss() -> Loss:
    """pytorch-msssim's index, as a loss."""
    from pytorch_msssim import ssim

    return lambda x, y: (1 - ssim(x, y, data_range=1.0)) / 2


FORMS: dict[str, Form] = {
    'mmkd_same': ('same', lambda: our_loss('same')),
    'mmkd_plain_same': ('same', lambda: our_loss('same', fused=False)),
    'kornia_same': ('same', lambda: kornia_loss('same')),
    'torchmetrics_same': ('same', torchmetrics_loss),
    'mmkd_valid': ('valid', lambda: our_loss('valid')),
    'mmkd_plain_valid': ('valid', lambda: our_loss('valid', fused=False)),
    'kornia_valid': ('valid', lambda: kornia_loss('valid')),
    'pytorch_msssim_valid': ('valid', pytorch_msssim_loss),
    'mmkd_min_max_same': ('min_max', lambda: our_loss('same', normalize='image')),
    'mmkd_plain_min_max_same': ('min_max', lambda: our_loss('same', normalize='image', fused=False)),
}
COMPILED: dict[str, Form] = {
    f'mmkd_compiled_{kind}': (kind, lambda kind=kind: torch.compile(our_loss(kind, fused=False), dynamic=False))
    for kind in ('same', 'valid')
}


@contextmanager
def constants(dense: int | None = None, part: int | None = None) -> Iterator[None]:
    """Inside, the fused form works with other constants than those of `mmkd.functional.ssim_fused`.

    Args:
        dense: cells of a map up to which it is blurred by matrix products; None leaves it.
        part: elements of one map that are worked on together; None leaves it.
    """
    kept = dict(DENSE=ssim_fused.DENSE, PART=ssim_fused.PART, PART_ELSEWHERE=ssim_fused.PART_ELSEWHERE)
    chosen = {} if dense is None else dict(DENSE=dense)
    chosen |= {} if part is None else dict(PART={}, PART_ELSEWHERE=part)
    vars(ssim_fused).update(chosen)
    try:
        yield
    finally:
        vars(ssim_fused).update(kept)


def loss_with(**chosen: int) -> Loss:
    """The fused form with other `constants`; its value and its gradient are both made in the forward pass."""
    loss = our_loss('same')

    def changed(x: Tensor, y: Tensor) -> Tensor:
        with constants(**chosen):
            return loss(x, y)

    return changed


def wanted_forms(dense: Sequence[int] = (), part: Sequence[int] = (), compiled: bool = False) -> dict[str, Form]:
    """All forms that are to be compared, by name.

    Args:
        dense: of `constants`, one more form each.
        part: of `constants`, one more form each.
        compiled: with the plain form by `torch.compile`.
    """
    found = FORMS | (COMPILED if compiled else {})
    for key, values in (('dense', dense), ('part', part)):
        for value in values:
            found[f'mmkd_same_{key}_{value}'] = ('same', lambda key=key, value=value: loss_with(**{key: value}))
    return found
