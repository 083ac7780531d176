"""Feature maps out of any network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What one forward pass gives: logits and maps, the latter in layer order."""

    logits: Tensor  # [B, classes]
    maps: list[Tensor]  # [B, c_l, h_l, w_l] each, or tokens [B, N_l, c_l]


class FeatureNet(nn.Module):
    """A network whose forward pass gives the outputs of some of its modules beside its logits.

    Forward hooks keep the outputs, so nothing is computed twice and the network itself is unchanged. Between forward
    passes nothing is kept. Works under autocast, ``torch.compile``, DistributedDataParallel and CUDA graphs; not under
    DataParallel, whose copies of a network share its hooks.

    Args:
        net: any network that maps images to logits.
        layers: paths of modules inside ``net``, such as ``"layer1"`` or ``"features.3"``. Each has to run once in a
            forward pass and to give a map ``[B, c, h, w]`` or tokens ``[B, N, c]``.
        prefix_tokens: tokens before those of the image (class token, registers), which are left out of token maps.
        nhwc: the network's own maps are ``[B, h, w, c]``, as those of Swin transformers are; they are turned.

    Raises:
        ValueError: no layers, a layer that does not exist, or one named twice. In the forward pass: a layer did not
            run, or ran more than once; its output is no map; a later operation overwrote it in place (seen where
            autograd counts versions: not in inference mode, and not in compiled code); the network gives no logits.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str], *, prefix_tokens: int = 0, nhwc: bool = False) -> None:
        super().__init__()
        self.net = net
        self.layers = tuple(layers)
        self.prefix_tokens, self.nhwc = prefix_tokens, nhwc
        self._maps: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._recording = False
        if not self.layers:
            raise ValueError("layers: name at least one module of the network")
        modules = dict(net.named_modules())
        for name in self.layers:
            if not name or name not in modules:
                raise ValueError(f"layers: the network has no module '{name}'{nearest(name, modules)}")
            if self.layers.count(name) > 1:
                raise ValueError(f"layers: '{name}' is named twice")
            modules[name].register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, args: object, output: object) -> None:
        # activation checkpointing runs modules again in the backward pass: those outputs are no maps
        if not self._recording:
            return
        if name in self._maps:
            raise ValueError(f"layers: '{name}' runs more than once in a forward pass; name a module that runs once")
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            got = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"layers: '{name}' must give a map [B, c, h, w] or tokens [B, N, c], got {got}")
        self._maps[name] = output
        if not torch.compiler.is_compiling() and not output.is_inference():
            self._versions[name] = output._version

    def forward(self, images: Tensor) -> Output:
        """``[B, C, H, W]`` to logits and maps."""
        self._recording = True
        try:
            logits = self.net(images)
            self._check()
            if not isinstance(logits, Tensor):
                raise ValueError(f"the network must give logits [B, classes], got a {type(logits).__name__}")
            return Output(logits, [self._turned(self._maps[name]) for name in self.layers])
        finally:
            self._recording = False
            # a reference kept here would keep a step's whole graph alive
            self._maps.clear()
            self._versions.clear()

    def _check(self) -> None:
        for name in self.layers:
            if name not in self._maps:
                raise ValueError(f"layers: '{name}' did not run in the forward pass")
            if name in self._versions and self._versions[name] != self._maps[name]._version:
                raise ValueError(
                    f"layers: the output of '{name}' is overwritten in place by a later operation (an in-place ReLU, "
                    "say); name the module that does so instead"
                )

    def _turned(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x[:, self.prefix_tokens :]
        return x.permute(0, 3, 1, 2) if self.nhwc else x

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


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence that refuses ``name``: what may have been meant."""
    found = get_close_matches(name, [known for known in names if known], cutoff=0.4)
    return f"; the nearest are {', '.join(found)}" if found else ""
