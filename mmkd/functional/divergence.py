"""Divergences between the class scores of a student and a teacher, whole and taken apart.

Shapes: `P` rows (sampled boxes or points), `C` logits of a row. All values are in nats and carry the factor
`tau ** 2` of Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), so that gradients keep their size when `tau`
changes. Logarithms come from `log_softmax` and `logsigmoid`, never from the logarithm of a probability: a logit gap of
1e4 gives finite values and finite gradients. Logits of half precision are computed in float32, and give float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.functional.reading import read_is_free


def _checked_logits(student: Tensor, teacher: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Both in at least float32: float16 has errors of a hundredth in these logarithms."""
    if student.shape != teacher.shape:
        raise ValueError(
            f'student and teacher must agree in shape, got {tuple(student.shape)}, {tuple(teacher.shape)}.'
        )
    if not tau > 0:
        raise ValueError(f'tau must be > 0, got {tau}.')
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def kl_divergence(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """Divergence of the student's softmax from the teacher's.

    `tau^2 sum_c p_t log(p_t / p_s)`, `p = softmax(z / tau)`; Hinton et al. 2015, section 2. As the paper.

    Args:
        student: (..., C) logits.
        teacher: (..., C) logits.
        tau: temperature, > 0.

    Returns:
        (...) divergences, >= 0.

    Raises:
        ValueError: shapes differ or `tau` is not positive.
    """
    student, teacher = _checked_logits(student, teacher, tau)
    log_s, log_t = (student / tau).log_softmax(-1), (teacher / tau).log_softmax(-1)
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(-1)


def binary_kl_divergence(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """Divergence between two yes-or-no distributions, for every logit by itself.

    `tau^2 [p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))]`, `p = sigmoid(z / tau)`. It sees the absolute
    score, to which a softmax over sigmoid logits is blind.

    Args:
        student: logits of any shape.
        teacher: logits of the same shape.
        tau: temperature, > 0.

    Returns:
        Divergences of the same shape, >= 0.

    Raises:
        ValueError: shapes differ or `tau` is not positive.
    """
    student, teacher = _checked_logits(student, teacher, tau)
    s, t = student / tau, teacher / tau
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return tau**2 * (yes + no)


def decoupled_kl_divergence(
    student: Tensor, teacher: Tensor, target: Tensor, *, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Target-class and non-target-class part of the divergence between two softmax classifiers.

    With `p = softmax(z / tau)`, `b = [p_y, 1 - p_y]` and `q` the softmax over the classes other than `y`:
    `TCKD = tau^2 KL(b_t || b_s)`, `NCKD = tau^2 KL(q_t || q_s)`, and for every row

        KL(p_t || p_s) tau^2 = TCKD + (1 - p_t,y) NCKD.

    Zhao et al. 2022 (DKD), section 3 (https://arxiv.org/abs/2203.08679). As the paper; the two-way distribution is read
    from the logit `z_y - logsumexp(z_others)`, which stays finite where the authors' logarithm of a softmax does not.

    Args:
        student: (P, C) logits, C >= 2.
        teacher: (P, C) logits.
        target: (P,) target class of each row, in [0, C).
        tau: temperature, > 0.

    Returns:
        TCKD and NCKD, (P,) each, >= 0. NCKD is 0 for C = 2.

    Raises:
        ValueError: shapes do not fit, a target is outside [0, C) (looked at on the CPU alone), C < 2 or `tau` is not
            positive.
    """
    student, teacher = _checked_logits(student, teacher, tau)
    _check_targets(target, student, background=False)
    classes = student.shape[1]
    if classes < 2:
        raise ValueError('A softmax over one logit is always 1; use decoupled_binary_kl_divergence for one class.')
    z_s, z_t = student / tau, teacher / tau
    # by index and not by a mask, whose size only the device would know
    own = target[:, None]
    other = torch.arange(classes - 1, device=target.device).expand(len(target), -1)
    other = other + (other >= own)  # (P, C - 1): the other classes, in order
    others_s, others_t = (z.gather(1, other) for z in (z_s, z_t))
    two_way_s = z_s.gather(1, own)[:, 0] - others_s.logsumexp(-1)
    two_way_t = z_t.gather(1, own)[:, 0] - others_t.logsumexp(-1)
    return tau**2 * binary_kl_divergence(two_way_s, two_way_t), tau**2 * kl_divergence(others_s, others_t)


def decoupled_binary_kl_divergence(
    student: Tensor, teacher: Tensor, target: Tensor, *, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Target-class and non-target-class part of the divergence between two rows of sigmoid classifiers.

    The binary divergence of the target class, and the sum of those of all other classes:

        sum_c binary KL_c = target part + non-target part.

    Not published; this project's choice for dense detection heads: the softmax form is blind to the absolute score, and
    undefined for one class.

    Args:
        student: (P, C) logits, C >= 1.
        teacher: (P, C) logits.
        target: (P,) target class of each row in [0, C]; C means background: the row has no target class.
        tau: temperature, > 0.

    Returns:
        Target part and non-target part, (P,) each, >= 0. The target part of background is 0; the non-target part of a
        target is 0 for C = 1.

    Raises:
        ValueError: shapes do not fit, a target is outside [0, C] (looked at on the CPU alone) or `tau` is not positive.
    """
    student, teacher = _checked_logits(student, teacher, tau)
    _check_targets(target, student, background=True)
    is_target = target[:, None] == torch.arange(student.shape[1], device=target.device)
    values = binary_kl_divergence(student, teacher, tau=tau)
    return values.where(is_target, 0).sum(-1), values.where(~is_target, 0).sum(-1)


def _check_targets(target: Tensor, logits: Tensor, *, background: bool) -> None:
    """Refuse what are no class indices; the class C, where allowed, is a row without a class."""
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(f'logits must be (P, C) and target (P,), got {tuple(logits.shape)} and {tuple(target.shape)}.')
    classes = logits.shape[1]
    highest = classes if background else classes - 1
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f'target must hold class indices, got dtype {target.dtype}.')
    if target.numel() and read_is_free(target) and not 0 <= target.min() <= target.max() <= highest:
        raise ValueError(
            f'target must lie in [0, {highest}] for {classes} logits, got {int(target.min())} to {int(target.max())}.'
        )
