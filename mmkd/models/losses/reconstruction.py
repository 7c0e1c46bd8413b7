"""What an auto-encoding connector on the teacher's side gives.

Shapes: `N` images, `B, C` channels of code and feature, `H, W` cells.
"""

from collections.abc import Sequence

from torch import Tensor

from mmkd.models.losses.checks import at_least_float32


def unpack_coded(preds_T: Sequence[Tensor], code_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What an auto-encoding connector on the teacher's side gives, checked, in at least float32.

    Args:
        preds_T: (N, B, H, W) code, (N, C, H, W) reconstruction, (N, C, H, W) feature.
        code_shape: the shape that the code must have: that of the student's code.

    Returns:
        The three; the code and the feature are targets and get no gradient, the reconstruction does.

    Raises:
        TypeError: not three tensors.
        ValueError: shapes do not fit.
    """
    if isinstance(preds_T, Tensor) or len(preds_T) != 3 or not all(isinstance(part, Tensor) for part in preds_T):
        raise TypeError(
            "preds_T must be (code, reconstruction, feature) from an auto-encoding connector on the teacher's side, "
            f'got {type(preds_T).__name__}.'
        )
    code, reconstruction, feature = preds_T
    if code.shape != tuple(code_shape) or reconstruction.shape != feature.shape:
        raise ValueError(
            f"The student's code is {tuple(code_shape)}, the teacher's {tuple(code.shape)}; reconstruction and "
            f'feature are {tuple(reconstruction.shape)} and {tuple(feature.shape)}: each two must be equal.'
        )
    return at_least_float32(code.detach()), at_least_float32(reconstruction), at_least_float32(feature.detach())
