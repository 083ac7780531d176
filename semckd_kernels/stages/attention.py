r"""Attention allocation of all layers at once, forward and backward.

.. math::
    G_l = R(F_l) R(F_l)^T, \quad q_{bi} = \mathrm{MLP}_i(G^s_i[b]), \quad k_{bj} = \mathrm{MLP}_j(G^t_j[b]), \quad
    e_{bij} = \langle q_{bi}, k_{bj} \rangle / \mathrm{soft}, \quad \alpha_{bi\cdot} = \mathrm{softmax}_j\, e_{bij}

The MLPs of all ``L = S + T`` layers have one shape, so they are two batched products. Similarities ``G`` are kept in
the accumulation type (fp32, fp64 for fp64 maps) whatever the maps' type: those of ordinary activations overflow fp16.
The backward is written out, since it runs inside an operator, where autograd does not record. The teacher's
similarities have no gradient.

Source: Chen et al., AAAI 2021, "Attention Allocation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Embedding(NamedTuple):
    """The parameters of one layer's query or key MLP: ``Linear(Bq -> 2d)``, ReLU, ``Linear(2d -> d)``."""

    weight1: Tensor  # [2d, Bq]
    bias1: Tensor  # [2d]
    weight2: Tensor  # [d, 2d]
    bias2: Tensor  # [d]


class Embeddings(NamedTuple):
    """Those of all layers, students first."""

    weight1: Tensor  # [L, 2d, Bq]
    bias1: Tensor  # [L, 2d]
    weight2: Tensor  # [L, d, 2d]
    bias2: Tensor  # [L, d]

    @classmethod
    def stack(cls, layers: Sequence[Embedding], acc: torch.dtype) -> Embeddings:
        """From the parameters of each layer."""
        return cls(*(torch.stack(of_layers).to(acc) for of_layers in zip(*layers, strict=True)))

    def unstack(self) -> list[Embedding]:
        """The inverse of :meth:`stack`, as views."""
        return [Embedding(*layer) for layer in zip(*(p.unbind(0) for p in self), strict=True)]


class Allocation(NamedTuple):
    """The attention, and what its backward needs."""

    weight: Tensor  # alpha [B, S, T]
    similarity: Tensor  # [L, B, Bq]; a GPU's kernels leave out columns from B on, which are zero: [L, B, B]
    hidden: Tensor  # [L, B, 2d], after the ReLU
    embedding: Tensor  # queries and keys [L, B, d], of length one
    length: Tensor  # [L, B, 1], before the division; 1 for a row of zeros


def similarity(rows: Tensor, acc: torch.dtype) -> Tensor:
    """``rows @ rows^T``, ``[B, N] -> [B, B]``, accumulated and returned in the accumulation type."""
    if rows.dtype == acc:
        return rows @ rows.t()
    if rows.device.type == "cuda":
        return torch.mm(rows, rows.t(), out_dtype=acc)
    return (acc_rows := rows.to(acc)) @ acc_rows.t()


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / ||x||`` over the last axis and the divisor; a zero row stays zero, with a finite gradient."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    length = torch.where(length == 0, torch.ones_like(length), length)
    return x / length, length


def embed(similarity: Tensor, parameters: Embeddings) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys ``[L, B, d]`` from similarities ``[L, B, Bq]``; with the hidden layer and the lengths."""
    weight1, bias1, weight2, bias2 = parameters
    hidden = torch.relu(torch.baddbmm(bias1.unsqueeze(1), similarity, weight1.mT))
    embedding, length = normalize(torch.baddbmm(bias2.unsqueeze(1), hidden, weight2.mT))
    return embedding, hidden, length


def energy(embedding: Tensor, s_layers: int, soft: float) -> Tensor:
    """``e [B, S, T]`` from queries and keys ``[L, B, d]``."""
    query, key = embedding[:s_layers], embedding[s_layers:]
    return torch.bmm(query.transpose(0, 1), key.permute(1, 2, 0)) / soft


def pad(similarities: Sequence[Tensor], batch_size: int) -> Tensor:
    """``L`` similarities ``[B, B]`` as ``[L, B, Bq]``: samples that a smaller batch lacks are similar to none."""
    stacked = torch.stack(list(similarities))
    return F.pad(stacked, (0, batch_size - stacked.shape[1]))


def allocate(similarities: Sequence[Tensor], parameters: Embeddings, s_layers: int, soft: float) -> Allocation:
    """Attention ``[B, S, T]`` from the similarities ``[B, B]`` of S student and T teacher layers."""
    padded = pad(similarities, parameters.weight1.shape[2])
    embedding, hidden, length = embed(padded, parameters)
    weight = torch.softmax(energy(embedding, s_layers, soft), -1)
    return Allocation(weight, padded, hidden, embedding, length)


def allocate_backward(
    pair_mse: Tensor, saved: Allocation, parameters: Embeddings, soft: float
) -> tuple[Tensor, Embeddings]:
    r"""Gradients of ``loss = 1/(B*S) sum alpha*D`` through the attention.

    :math:`d e_{bij} = \alpha_{bij} \sum_k \alpha_{bik} (D_{bij} - D_{bik}) / (B S)`: a sum of differences, in which
    large errors that differ little cancel exactly.

    Args:
        pair_mse: ``D [B, S, T]``.

    Returns:
        Gradients of the student's similarities ``[S, B, B]`` and of the parameters.
    """
    alpha, similarity, hidden, embedding, length = saved
    batch, s_layers, _ = alpha.shape
    differences = pair_mse.unsqueeze(3) - pair_mse.unsqueeze(2)
    d_energy = alpha * (differences * alpha.unsqueeze(2)).sum(3) / (batch * s_layers * soft)
    query, key = embedding[:s_layers].transpose(0, 1), embedding[s_layers:].transpose(0, 1)  # [B, S, d], [B, T, d]
    d_embedding = torch.cat([torch.bmm(d_energy, key), torch.bmm(d_energy.mT, query)], 1).transpose(0, 1)
    along = (embedding * d_embedding).sum(-1, keepdim=True)
    d_out = (d_embedding - embedding * along) / length
    d_hidden = torch.bmm(d_out, parameters.weight2) * (hidden > 0)
    gradients = Embeddings(
        torch.bmm(d_hidden.mT, similarity), d_hidden.sum(1), torch.bmm(d_out.mT, hidden), d_out.sum(1)
    )
    d_similarity = torch.bmm(d_hidden[:s_layers], parameters.weight1[:s_layers, :, :batch])
    return d_similarity, gradients
