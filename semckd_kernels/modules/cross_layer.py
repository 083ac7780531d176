"""The parameters of SemCKD's attention and projections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import projection_names, to_toolbox, translate
from .maps import check_features, check_together


class SimilarityEmbedding(nn.Module):
    """Query or key of one layer: ``Linear(Bq -> 2d)``, ReLU, ``Linear(2d -> d)``, division by the L2 norm."""

    def __init__(self, batch_size: int, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(batch_size, 2 * dim)
        self.linear2 = nn.Linear(2 * dim, dim)

    def forward(self, similarity: Tensor) -> Tensor:
        """similarity ``[B, Bq]`` -> ``[B, d]``, in the similarity's type whatever that of the parameters."""
        x = _in_type_of_input(self.linear2, F.relu(_in_type_of_input(self.linear1, similarity)))
        norm = x.norm(dim=1, keepdim=True)
        # a zero row stays zero, with a finite gradient
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _in_type_of_input(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` with its parameters in the type of x; called as a module, so that whatever is hooked to it runs."""
    converted = {name: p.to(x.dtype) for name, p in layer.named_parameters() if p.dtype != x.dtype}
    result: Tensor = torch.func.functional_call(layer, converted, (x,)) if converted else layer(x)
    return result


class Projection(nn.Module):
    """Student map to teacher map: conv1x1, BatchNorm, ReLU, conv3x3, BatchNorm, ReLU, conv1x1, no biases."""

    def __init__(self, s_channels: int, t_channels: int) -> None:
        super().__init__()
        middle = 2 * t_channels
        self.regressor = nn.Sequential(
            nn.Conv2d(s_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, t_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.regressor(x)
        return projected


class CrossLayerModule(nn.Module):
    """Query and key MLPs of all layers and the projections of all pairs, under the reference's names.

    They are created in the order of the authors' code, keys, queries, projections row by row: a seed gives the same
    start, and an optimizer's state, which goes by position, the same meaning. State dicts: see :mod:`.checkpoints`.

    Args:
        batch_size: Bq, the batch size the attention is built for.
        s_n, t_n: channels of the student's and the teacher's maps.
        factor: the attention's width is ``d = max(Bq // factor, 1)``.
        soft: temperature of the attention.
        class_token: token maps begin with a class token, which is dropped.
        batch_size_name: what the constructor calls ``batch_size``, for messages.
    """

    def __init__(
        self,
        batch_size: int,
        s_n: Sequence[int],
        t_n: Sequence[int],
        factor: int,
        soft: float,
        class_token: bool,
        batch_size_name: str,
    ) -> None:
        super().__init__()
        self.batch_size, self._batch_size_name = batch_size, batch_size_name
        self.s_n, self.t_n = list(s_n), list(t_n)
        self.s_len, self.t_len = len(self.s_n), len(self.t_n)
        self.soft, self.class_token = soft, class_token
        dim = max(batch_size // factor, 1)
        for j in range(self.t_len):
            self.add_module(f"key_weight{j}", SimilarityEmbedding(batch_size, dim))
        for i in range(self.s_len):
            self.add_module(f"query_weight{i}", SimilarityEmbedding(batch_size, dim))
        self._projection_names = projection_names(self.s_len, self.t_len)
        for (i, j), name in self._projection_names.items():
            self.add_module(name, Projection(self.s_n[i], self.t_n[j]))
        self.register_load_state_dict_pre_hook(translate)

    @property
    def feat_dim(self) -> int:
        """The batch size the attention is built for, as the authors' later code calls it."""
        return self.batch_size

    def toolbox_state_dict(self) -> OrderedDict[str, Tensor]:
        """The state dict in the form of the authors' later code base (2022), which loads it strictly.

        ``query_{i}`` and ``key_{j}`` stand for ``query_weight{i}`` and ``key_weight{j}``, and four tensors of each,
        which that code holds and never reads, are zeros. :meth:`load_state_dict` reads this form as well.

        Raises:
            ValueError: from 12 x 11 layers on, where that form has one name for two pairs.

        Example:
            >>> import semckd_kernels as sk
            >>> list(sk.SemCKD(16, [8], [12]).toolbox_state_dict())[0]
            'key_0.linear1.weight'
        """
        return to_toolbox(self)

    def embeddings(self) -> list[SimilarityEmbedding]:
        """The MLPs of all layers, students first."""
        names = [f"query_weight{i}" for i in range(self.s_len)] + [f"key_weight{j}" for j in range(self.t_len)]
        return [self._modules[name] for name in names]  # type: ignore[misc]

    def projection(self, i: int, j: int) -> Projection:
        """The projection of pair (i, j)."""
        return self._modules[self._projection_names[i, j]]  # type: ignore[return-value]

    def check_maps(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Checked maps ``[B, c, h, w]``."""
        student = check_features("feat_s", feat_s, self.s_n, self.class_token)
        teacher = check_features("feat_t", feat_t, self.t_n, self.class_token)
        check_together(student, teacher, self.batch_size, self._batch_size_name)
        return student, teacher

    def check_statistics(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> None:
        """Raises ValueError where a BatchNorm would have to find a variance from one value a channel."""
        if len(feat_s[0]) > 1:
            return
        for i, x in enumerate(feat_s):
            for j, y in enumerate(feat_t):
                if min(x.shape[2], y.shape[2]) * min(x.shape[3], y.shape[3]) > 1:
                    continue
                for name, m in self.projection(i, j).named_modules():
                    # a SyncBatchNorm may have the values of other processes
                    if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and _uses_batch_statistics(m):
                        raise ValueError(
                            f"feat_s[{i}] and feat_t[{j}] meet at 1 x 1, where one sample is a single value a channel: "
                            f"BatchNorm needs more than one when training ({self._projection_names[i, j]}.{name})"
                        )


def _uses_batch_statistics(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.training or (norm.running_mean is None and norm.running_var is None)
