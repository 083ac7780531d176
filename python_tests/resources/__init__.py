"""What the compilers made of the GPU kernels, read without a GPU.

``python -m python_tests.resources`` prints the table; ``test_cuda_resources.py`` holds the CUDA kernels to
``budget.json``, the Triton helper's own tests hold the Triton kernels to theirs.
"""
