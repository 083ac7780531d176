"""The whole criterion, fused: every gradient is computed while a pair's maps are at hand.

============  ==================================================================================
operator      the registered operator and its autograd formula, a multiplication
call          the operator's arguments as one record, and what they hold
engine        layers, attention, chunks of pairs, gradients included
============  ==================================================================================

Arrows: operator -> { call, engine }, call -> engine. What a backend supplies is in :mod:`semckd_kernels.stages`.
"""

from .call import Call
from .engine import Result
from .operator import criterion

__all__ = ["Call", "Result", "criterion"]
