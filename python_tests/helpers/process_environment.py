"""What the processes of tests, and those that they start, have in their environment. Import it before torch."""

from __future__ import annotations

import os

# Threads that wait for work spin, and take the core that another process of the tests would use: on two cores shared by
# two processes the CPU's tests take six times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch.compile asks the compiler about every instruction set before it makes its first kernel, for 20 s; what is tested
# is how operators fit into a compiled program, not how fast the rest of it is
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
