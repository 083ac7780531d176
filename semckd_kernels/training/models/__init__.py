"""Networks by name, with the feature maps that distillation takes out of them.

================  ===========================================================================
``registry``      :func:`build`: a name to a network with its layers; :func:`names`: the zoo
``resnet``        CIFAR ResNets, on torchvision's blocks
``wide_resnet``   Wide ResNets
``vgg``           VGGs for small images
``mobilenet``     MobileNetV2 for small images
``shufflenet``    ShuffleNetV1 and ShuffleNetV2 for small images
``external``      networks of torchvision, of timm and of a user's own function
``stages``        which layers to take where none are named
``features``      :class:`FeatureNet`: one forward pass gives logits and maps
``weights``       :func:`load_weights`: finds a network's weights in what a file holds
``weight_files``  files of torch, old and new, and of safetensors
``inert_pickle``  what lies beside the weights, without running any of it
================  ===========================================================================

Example:
    >>> import torch
    >>> from semckd_kernels.training import models
    >>> net = models.build("resnet8x4", classes=100)
    >>> logits, maps = net(torch.randn(2, 3, 32, 32))
    >>> logits.shape, [tuple(x.shape) for x in maps]
    (torch.Size([2, 100]), [(2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8)])
"""

from __future__ import annotations

from .features import FeatureNet, Output
from .registry import build, canonical_name, names
from .resnet import CIFAR_RESNET_LAYERS, cifar_resnet
from .weights import load_weights

__all__ = [
    "CIFAR_RESNET_LAYERS",
    "FeatureNet",
    "Output",
    "build",
    "canonical_name",
    "cifar_resnet",
    "load_weights",
    "names",
]
