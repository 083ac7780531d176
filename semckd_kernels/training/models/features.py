"""A network whose forward pass gives its feature maps beside its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ...features import FeatureMaps
from ...teacher import folded, prepare_teacher


class Output(NamedTuple):
    """What one forward pass gives: logits and maps, the latter in layer order."""

    logits: Tensor  # [B, classes]
    maps: list[Tensor]  # [B, c_l, h_l, w_l] each, or tokens [B, N_l, c_l]


# exported networks can be saved: the message of torch.export.save names this function, which has no public name
_pytree._register_namedtuple(Output, serialized_type_name="semckd_kernels.training.models.Output")


class FeatureNet(nn.Module):
    """A network and :class:`semckd_kernels.FeatureMaps` of it, in one forward pass.

    The network itself is unchanged, and between forward passes nothing is kept. Works under autocast,
    ``torch.compile``, DistributedDataParallel and CUDA graphs; not under DataParallel, whose copies of a network share
    its hooks.

    Args:
        net: any network that maps images to logits.
        layers: paths of modules inside ``net``, such as ``"layer1"`` or ``"features.3"``. Each has to run once in a
            forward pass and to give a map ``[B, c, h, w]`` or tokens ``[B, N, c]``.
        prefix_tokens: tokens before those of the image (class token, registers), which are left out of token maps.
        nhwc: the network's own maps are ``[B, h, w, c]``, as those of Swin transformers are; they are turned.

    Raises:
        ValueError: as :class:`semckd_kernels.FeatureMaps` does; in the forward pass also where the network gives no
            logits.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str], *, prefix_tokens: int = 0, nhwc: bool = False) -> None:
        super().__init__()
        self.net = net
        self.layers = tuple(layers)
        self.prefix_tokens, self.nhwc = prefix_tokens, nhwc
        self._features: FeatureMaps | None = self._attach()

    def _attach(self) -> FeatureMaps:
        return FeatureMaps(self.net, self.layers, prefix_tokens=self.prefix_tokens, nhwc=self.nhwc)

    def __getstate__(self) -> dict[str, Any]:
        # the hooks are those of this network: a copy hooks its own when it first runs
        return {**self.__dict__, "_features": None}

    def prepare(self) -> None:
        """Makes a frozen teacher of the network, in place: see :func:`semckd_kernels.prepare_teacher`."""
        if self._features is not None:
            # a hook would keep its module from becoming part of another one; the next forward pass hooks again
            self._features.close()
            self._features = None
        prepare_teacher(self.net, self.layers, inplace=True)

    @property
    def prepared(self) -> dict[str, int] | None:
        """How many convolutions, and of what else is part of them; None where nothing was prepared."""
        return folded(self.net)

    def release(self) -> nn.Module:
        """The network itself, without hooks; this wrapper attaches new ones where it runs again."""
        if self._features is not None:
            self._features.close()
        self._features = None
        return self.net

    def drop_prefix(self, tokens: int) -> None:
        """Leaves out this many tokens from now on."""
        self.prefix_tokens = tokens
        if self._features is not None:
            self._features.prefix_tokens = tokens

    def forward(self, images: Tensor) -> Output:
        """``[B, C, H, W]`` to logits and maps."""
        if self._features is None:
            self._features = self._attach()
        try:
            logits = self.net(images)
            maps = self._features.take()
        finally:
            # after an error as well: a map kept here would keep a step's whole graph alive
            self._features.clear()
        if not isinstance(logits, Tensor):
            raise ValueError(f"the network must give logits [B, classes], got a {type(logits).__name__}")
        return Output(logits, maps)

    @torch.no_grad()
    def map_shapes(self, images: Tensor | Sequence[int]) -> list[torch.Size]:
        """Shapes ``[c_l, h_l, w_l]`` of the maps (tokens: ``[N_l, c_l]``), without changing any statistics.

        Args:
            images: ``[B, C, H, W]``, of which the first is used; or the size ``(H, W)`` of images, whose number of
                channels is then that of the first convolution.
        """
        if not isinstance(images, Tensor):
            images = self._blank(images)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            return [x.shape[1:] for x in self(images[:1]).maps]
        finally:
            for module, training in modes.items():
                module.training = training

    def _blank(self, size: Sequence[int]) -> Tensor:
        convolution = next((m for m in self.net.modules() if isinstance(m, nn.Conv2d)), None)
        if convolution is None:
            raise ValueError("the network has no convolution that tells its number of input channels: pass images")
        channels = convolution.in_channels
        return torch.zeros(1, channels, *size, device=convolution.weight.device, dtype=convolution.weight.dtype)

    def parameter_count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
