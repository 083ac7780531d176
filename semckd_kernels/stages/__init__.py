"""What a backend of the criterion supplies, and what backends share.

============  ==================================================================================
backend       the interface that the engine calls: all layers at once, and *chunks* of pairs
interface     the steps of one pair, for a backend that takes one pair at a time
pair_by_pair  such a backend, over these steps
attention     similarities, embeddings and allocation of all layers at once, forward and backward
projection    the algebra of BatchNorm around the convolutions, on vectors and small matrices
pooling       every resolution of a map, made once
streams       side streams, while a CUDA graph is being captured
workspace     scratch memory for one pair's maps
============  ==================================================================================
"""
