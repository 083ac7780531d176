"""What a backend of the criterion supplies, and what backends share.

==========  ==================================================================================
backend     the interface that the engine calls: all layers at once, and *chunks* of pairs
attention   similarities, embeddings and allocation of all layers at once, forward and backward
projection  a projection's parameters, and the algebra of BatchNorm around its convolutions
records     such parameters as operators take and give them, in one list
pooling     every resolution of a map, made once
streams     side streams, while a CUDA graph is being captured
workspace   memory that the CPU uses again from call to call, and how it is given back
==========  ==================================================================================
"""
