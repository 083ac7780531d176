"""Runs side by side: ``semckd compare``, the table of a paper, and which of its differences are within noise.

=================  =================================================================================================
``runs``           finds runs, and takes those that compare: one data set, one student
``groups``         runs that differ by the seed alone, and a name for each such group
``statistics``     mean, deviation and intervals over seeds
``tables``         the table and its differences as text, CSV and LaTeX
``figures``        charts of the page
``comparison``     all of that for given folders
``page``           the HTML page, and the comparison as a :class:`..runs.Result`
=================  =================================================================================================

Example:
    >>> from semckd_kernels.analysis.comparison.comparison import compare
    >>> found = compare(["runs/alone", "runs/kd", "runs/semckd"])  # doctest: +SKIP
    >>> print(found.summary)  # doctest: +SKIP
"""
