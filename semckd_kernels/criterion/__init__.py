"""The whole criterion, fused: every gradient is computed while a pair's maps are at hand.

============  ==================================================================================
operator      the registered operator and its autograd formula, a multiplication
engine        pair by pair through the stages, gradients included
attention     similarities, embeddings and allocation of all layers at once, forward and backward
projection    the algebra of BatchNorm around the convolutions, on vectors and small matrices
pooling       every resolution of a map, made once
workspace     scratch memory for one pair's maps
stages        what a backend supplies
============  ==================================================================================

Arrows: operator -> engine -> { attention, projection, pooling, workspace, stages }; backends implement stages.
"""

from .engine import Options, Result
from .operator import criterion

__all__ = ["Options", "Result", "criterion"]
