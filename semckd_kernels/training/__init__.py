"""Training and distillation of whole networks through the public names of ``semckd_kernels``: ``semckd train``.

:func:`train`, :func:`load` and :func:`make_config` do the same from Python. Needs the packages of the extra ``train``;
``semckd info`` prints the command that adds them and keeps torch.

================  =====================================================================================
``config``        everything that a run is made with, as dataclasses and JSON; ``presets``: the paper's recipes
``flags``         what each flag sets in it; ``parser``: near names, types
``config_file``   the file of ``--config``; ``values``: fields of files, in their types
``optimizers``    of torch and timm by name; ``schedules``: learning rates, as functions of the update
``api``           training from Python, and what the command line does as well
``process``       what a run sets for its process
``models``        networks by name, with their feature maps
``named_code``    code that a stored configuration names, and when it is imported
``data``          data sets by name, and their batches
``methods``       a record for each method: cross-entropy alone, KD, SemCKD and its variants, or your own
``preparation``   from a configuration to everything that a run needs, checked
``distributed``   the processes of a run
``loop``          steps, their timers and records, evaluation, divergence, signals, progress
``run``           the files of a run: folder, lock, checkpoints, rows, summary, and what it resumes from
``report``        the HTML report and its charts; in what a run differs from the paper's recipe
``export``        the student of a run as a file for use elsewhere, and its model card; ``export_formats``: which files
``paper``         the accuracy to expect
``archive``       checksums of checkpoint files; ``errors``: exit codes, and an error in one sentence
================  =====================================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.configs import make_config
    from .api.runs import Run, Summary, load, train

__all__ = ["Run", "Summary", "load", "make_config", "train"]


def __getattr__(name: str) -> Any:
    # what is handed out needs the optional packages, which the other modules of this folder do without
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "configs" if name == "make_config" else "runs"
    return getattr(importlib.import_module(f"{__name__}.api.{module}"), name)
