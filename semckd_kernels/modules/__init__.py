"""The public modules: they hold options and parameters, the work is in ``functional`` and ``criterion``."""

from .distiller import Distiller, DistillerOutput
from .self_attention import SelfA
from .semckd import SemCKD, SemCKDOutput
from .semckd_loss import SemCKDLoss

__all__ = ["Distiller", "DistillerOutput", "SelfA", "SemCKD", "SemCKDLoss", "SemCKDOutput"]
