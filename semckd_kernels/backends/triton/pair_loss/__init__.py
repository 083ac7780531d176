"""The pair loss in Triton."""
