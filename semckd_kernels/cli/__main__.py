"""``python -m semckd_kernels.cli``: the console script ``semckd``."""

import sys

from . import main

if __name__ == "__main__":
    # `python -m` searches the folder that it is started in before installed packages: a run's folder may hold a timm.py
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.exit(main())
