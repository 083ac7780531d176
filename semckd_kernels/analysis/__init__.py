"""The paper's analyses of finished runs: ``semckd analyze``, and the functions beneath it.

=================  =================================================================================================
``attention``      mean attention over the test images, by class, and over the epochs of training
``mismatch``       the semantic mismatch score (our reading); ``mismatch_runs``: of several runs, side by side
``single_pairs``   one student for each single pair of layers: the negative regularisation of a bad choice
``gradcam``        Grad-CAM of one network; ``panels``: of teacher and students, side by side
``overview``       all of them at the end of ``semckd demo``
``comparison``     ``semckd compare``: runs side by side, mean and deviation over seeds, what is within noise
``runs``           what they share: finished runs, results, files; ``semckd analyze`` is in ``cli.analyze``
=================  =================================================================================================

Each takes finished runs (:class:`semckd_kernels.training.run.folder.RunFolder`) and gives a
:class:`.runs.Result`: text to print, and pictures (PNG, SVG, PDF) with their numbers (CSV, JSON). Needs the
packages of the extras ``train`` and ``plot``.
"""
