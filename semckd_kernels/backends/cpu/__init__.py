"""The criterion on the CPU: C++ kernels (``csrc/cpu``) and, where they serve better, the vendor's convolutions."""
