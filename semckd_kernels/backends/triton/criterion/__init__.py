"""The whole criterion in Triton: one launch a stage, over all pairs of a chunk."""
