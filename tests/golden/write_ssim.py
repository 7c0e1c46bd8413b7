"""Writes tests/golden/ssim.json: structural similarity as three independent libraries compute it.

Run by hand, never by the tests: `python tests/golden/write_ssim.py`.
"""

import json
from importlib.metadata import version
from pathlib import Path

import kornia
import torch
from pytorch_msssim import ssim as msssim_ssim
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SHAPE = (2, 3, 32, 40)
PACKAGES = ('kornia', 'torchmetrics', 'pytorch-msssim', 'torch')


def make_pair() -> tuple[Tensor, Tensor]:
    """The two maps, float64, from a generator with seed 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return x, (x + 0.2 * noise).clamp(0, 1)


def main() -> None:
    """Compute and write."""
    x, y = make_pair()
    values = {
        'kornia_same': kornia.metrics.ssim(x, y, 11, max_val=1.0).mean().item(),
        'kornia_valid': kornia.metrics.ssim(x, y, 11, max_val=1.0, padding='valid').mean().item(),
        'kornia_loss': kornia.losses.ssim_loss(x, y, 11, max_val=1.0).item(),
        'torchmetrics_same': structural_similarity_index_measure(x, y, data_range=1.0).item(),
        'pytorch_msssim_valid': msssim_ssim(x, y, data_range=1.0).item(),
    }
    document = {
        'command': 'python tests/golden/write_ssim.py',
        'input': 'x = rand, y = clamp(x + 0.2 randn, 0, 1), float64, (2, 3, 32, 40), one generator with seed 0',
        'versions': {name: version(name) for name in PACKAGES},
        'values': values,
    }
    Path(__file__).with_name('ssim.json').write_text(json.dumps(document, indent=2) + '\n')


if __name__ == '__main__':
    main()
