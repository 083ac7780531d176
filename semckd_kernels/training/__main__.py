"""``python -m semckd_kernels.training``: the same as ``semckd demo``."""

import sys

from ..cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
