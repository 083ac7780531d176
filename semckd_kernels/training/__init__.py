"""Training and distillation of whole networks through the public names of ``semckd_kernels``: ``semckd train``.

Needs the packages of the extra ``train``; ``semckd info`` prints the command that adds them and keeps torch.

===============  ======================================================================================
``config``       everything that a run is made with, as dataclasses and JSON
``presets``      the paper's recipes
``arguments``    from flags to a configuration; ``flags``: what each sets, ``parser``: near names, types
``models``       networks by name, and feature maps out of any network
``named_code``   code that a stored configuration names, and when it is imported
``data``         data sets by name, and their batches
``methods``      a record for each method: cross-entropy alone, KD, SemCKD and its variants, or your own
``setup``        a configuration to everything that a run needs, checked
``distiller``    the module that trains: student and criterion
``step``         one step; ``graph``: the same as a CUDA graph; ``clock``: where its time goes
``schedule``     the learning rate
``engine``       the training loop; ``evaluation``: accuracy
``image_watch``  images that cannot be decoded, over all processes
``records``      losses of steps, fetched together, and what is wrong with them
``divergence``   a run whose numbers are finite, but absurd
``distributed``  the processes of a run
``checkpoint``   files that are old or new, never half
``signals``      SIGTERM and Ctrl-C
``run_folder``   the files of a run, and how to load it
``monitor``      progress bar, CSV, TensorBoard
``report``       the HTML report; ``charts``, ``report_figures``, ``attention_figures``: its pictures
``paper``        the accuracy to expect; ``recipe_differences``: in what a run differs from the paper's
``units``        numbers as people read them
``summary``      what a finished run comes to; ``environment``: what it was made on
``errors``       exit codes, and an error in one sentence
``command``      ``semckd train``; ``demo``: ``semckd demo``
===============  ======================================================================================
"""
