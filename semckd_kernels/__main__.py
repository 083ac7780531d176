"""``python -m semckd_kernels``: what is installed, how it was built, and which backends serve here."""

from .environment import report

print(report())
