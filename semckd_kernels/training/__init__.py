"""Distillation of whole networks through the public names of ``semckd_kernels``: ``python -m semckd_kernels.training``.

Needs torchvision, scikit-learn, matplotlib and tqdm: ``pip install "semckd-kernels[train]"``.

==============  ==========================================================================================
``config``      options and their defaults
``data``        data sets by name: digits, CIFAR-100, ImageNet-style folders; order, augmentation, batches
``samples``     the digits of the demo
``models``      networks of torchvision, and feature maps out of any network
``methods``     loss terms: cross-entropy, knowledge distillation (KD), SemCKD
``engine``      training and evaluation of one network
``experiment``  a teacher and its students, trained one after the other and compared
``report``      the table, the attention heat map and the files of a finished experiment
==============  ==========================================================================================
"""
