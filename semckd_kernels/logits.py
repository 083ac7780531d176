"""Knowledge distillation of logits: the half of a loss that needs no feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import acc_dtype


def kd_loss(student: Tensor, teacher: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    r"""KD of logits: KL divergence of softened predictions, summed over classes and averaged over the batch.

    .. math:: L = \tau^2\, \mathrm{KL}\big(\mathrm{softmax}(z^t / \tau) \,\|\, \mathrm{softmax}(z^s / \tau)\big)

    Args:
        student: logits ``[B, classes]``, any float type; divided by the temperature as they are, then computed in fp32
            (fp64 for fp64), as plain code under autocast of a GPU does; that of the CPU would leave bf16.
        teacher: likewise, without gradient.
        temperature: :math:`\tau`.
        standardize: z-scores instead of logits, each sample's over its classes: :math:`(z - \bar z) / \sigma(z)`. The
            student then need not reproduce range and mean of the teacher's logits.

    Source: Hinton et al., 2015; standardized logits: Sun et al., "Logit Standardization in Knowledge Distillation",
    CVPR 2024.

    Example:
        >>> import torch
        >>> from semckd_kernels.logits import kd_loss
        >>> teacher = torch.randn(8, 10)
        >>> kd_loss(3 * teacher + 1, teacher, 4.0, standardize=True).item() < 1e-6
        True
    """
    dtype = acc_dtype(student.dtype)
    teacher = teacher.detach()
    if standardize:
        student, teacher = _z_scores(student.to(dtype)), _z_scores(teacher.to(dtype))
    log_student = F.log_softmax((student / temperature).to(dtype), 1)
    log_teacher = F.log_softmax((teacher / temperature).to(dtype), 1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _z_scores(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    # equal logits have no scale: they stay zero, with a finite gradient
    return centred * torch.where(variance == 0, torch.ones_like(variance), variance).rsqrt()
