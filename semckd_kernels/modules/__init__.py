"""Drop-in modules: they hold options and parameters, the work is in :mod:`semckd_kernels.functional`."""

from .self_attention import SelfA
from .semckd_loss import SemCKDLoss

__all__ = ["SelfA", "SemCKDLoss"]
