"""Whether what is installed is what mmkd was made for: releases, and mmcv's compiled operators."""

import importlib
import warnings

import mmcv
import torch
from mmengine.utils import digit_version

# Lowest and highest release that is supported, inclusive, and those that the test suite was run with.
TESTED = {
    'torch': ('2.4', '2.13', '2.13.0'),
    'mmcv': ('2.1.0', '2.3', '2.3.6'),
    'mmengine': ('0.10.7', '0.10.12', '0.10.12, in part 0.10.7'),
    'mmdet': ('3.3.0', '3.5', '3.5.1, in part 3.3.0'),
    'mmrazor': ('1.0.0', '1.0.0', '1.0.0'),
}
# How mmcv gets its operators.
BUILD = (
    'pip install ninja "setuptools<81" && MMCV_WITH_OPS=1 {cuda}pip install --force-reinstall --no-deps '
    '--no-build-isolation --no-cache-dir onedl-mmcv==2.3.6'
)


def check_ops() -> None:
    """Fail at start-up, not at the first NMS, where mmcv was built without its compiled operators.

    Raises:
        ImportError: `mmcv.ops` cannot be imported, or has no CUDA operators although torch sees a GPU; the message
            says how to mend it.
    """
    try:
        ops = importlib.import_module('mmcv.ops')
    except ImportError as error:
        raise ImportError(
            f'mmcv {mmcv.__version__} has no compiled operators ({error}). They are left out when pip builds it in '
            f'isolation. Mend it: {BUILD.format(cuda="")}'
        ) from error
    if torch.cuda.is_available() and ops.get_compiling_cuda_version() == 'not available':
        raise ImportError(
            f'mmcv {mmcv.__version__} was built without CUDA operators, and torch sees a GPU: the first NMS would '
            f'fail. With the CUDA toolkit {torch.version.cuda} (nvcc) installed: {BUILD.format(cuda="FORCE_CUDA=1 ")} '
            '(CUDA_VISIBLE_DEVICES= in front of the command stays on the CPU.)'
        )


def check_versions() -> list[str]:
    """Warn about releases outside the supported range; returns the warnings' texts."""
    texts = []
    for name, (low, high, tested) in TESTED.items():
        version = importlib.import_module(name).__version__.split('+')[0]
        # '2.13' covers 2.13.1: compare as many fields as the limit has.
        head = '.'.join(version.split('.')[: high.count('.') + 1])
        if digit_version(version) < digit_version(low) or digit_version(head) > digit_version(high):
            texts.append(f'mmkd supports {name} {low} to {high} (tested with {tested}), found {version}.')
    for text in texts:
        warnings.warn(text, stacklevel=2)
    return texts
