"""The whole criterion, fused: every gradient is computed while a pair's maps are at hand.

============  ==================================================================================
operator      the registered operator and its autograd formula, a multiplication
call          the operator's arguments as one record, and what they hold
engine        layers, attention, chunks of pairs, gradients included
backend       what a backend supplies: all layers at once, chunks of pairs
pair_by_pair  a backend over the steps of one pair at a time
stages        the steps of one pair
attention     similarities, embeddings and allocation of all layers at once, forward and backward
projection    the algebra of BatchNorm around the convolutions, on vectors and small matrices
pooling       every resolution of a map, made once
workspace     scratch memory for one pair's maps
============  ==================================================================================

Arrows: operator -> { call, engine, pair_by_pair }, call -> engine -> backend; pair_by_pair -> { stages, attention,
projection, pooling, workspace } and implements backend; a GPU's kernels implement backend as well.
"""

from .call import Call
from .engine import Result
from .operator import criterion

__all__ = ["Call", "Result", "criterion"]
