"""Distillation methods: each is one record, from which flags, columns, labels, report and analyses follow.

=============  =======================================================================================================
``method``     the records: :class:`Method`, its :class:`Term`\\ s and their :class:`Option`\\ s; :func:`register`; and
               :class:`MethodConfig`, a method with the values of its options
``standard``   the five methods of this package: ``ce``, ``kd``, ``semckd``, ``equal``, ``pair``
``criterion``  the loss of a training step, made of a method's terms
=============  =======================================================================================================

A method of your own is one call, made before the command line is read. Its option is a flag (``--mse-weight``) and a
field of ``config.json``, its term a column of ``metrics.csv`` and a curve of the report:

Example:
    >>> import torch.nn.functional as F
    >>> from semckd_kernels.training import methods
    >>> squared_error = methods.Term(
    ...     "mse",
    ...     "squared error",
    ...     weight=methods.Option("mse_weight", 1.0, "multiply the squared error of the logits by this weight"),
    ...     compute=lambda given: F.mse_loss(given.student.logits, given.teacher.logits),
    ... )
    >>> regression = methods.Method("regression", "regression", "regresses the logits", (methods.CE, squared_error))
    >>> methods.register(regression)
    >>> methods.MethodConfig("regression").own
    {'mse_weight': 1.0}
    >>> del methods.METHODS["regression"]
"""

from __future__ import annotations

from .criterion import Criterion, Loss, build, channels, layer_names
from .method import METHODS, Given, Layout, Method, MethodConfig, Option, Term, register
from .standard import ALONE, CE, EQUAL, KD, ONE_PAIR, SEMCKD, kd_loss, softmax_temperature

__all__ = [
    "ALONE",
    "CE",
    "EQUAL",
    "KD",
    "METHODS",
    "ONE_PAIR",
    "SEMCKD",
    "Criterion",
    "Given",
    "Layout",
    "Loss",
    "Method",
    "MethodConfig",
    "Option",
    "Term",
    "build",
    "channels",
    "kd_loss",
    "layer_names",
    "register",
    "softmax_temperature",
]
