"""What the criterion does with whole layers, in Triton: the host side of ``map_kernels.py``, ``similarity_kernels.py``
and ``attention_kernels.py``.

Each method uploads one table and launches each of its kernels once for all layers. Arguments have been checked by the
caller. Nothing here waits for the device or depends on data, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....stages.attention import Allocation, Embedding
from ....stages.backend import kept_dtype
from ..device import warp_size
from ..launch import TYPES, Launches, Word, Work, tickets
from .attention_kernels import (
    embed_backward_kernel,
    embed_kernel,
    energy_kernel,
    loss_kernel,
    parameter_gradients_kernel,
)
from .config import SUM_BLOCK, SUM_WARPS
from .layer_maps import LayerMaps, acc_dtype_of, aligned, grouped_by, options_of, tiles_of, vector_of
from .layers_config import (
    EMBED_THREADS,
    LOSS_BLOCK,
    LOSS_THREADS,
    PRODUCT_STAGES,
    PRODUCT_THREADS,
    attention_tile,
    similarity_tile,
    split_terms,
)
from .similarity_kernels import similarity_kernel, sum_splits_kernel


class Layers(LayerMaps):
    """The criterion's work on whole layers: maps, similarities and attention."""

    def allocate(
        self, rows: Sequence[Tensor], embedding: Sequence[Embedding], s_layers: int, soft: float
    ) -> Allocation:
        """The attention; see :func:`semckd_kernels.stages.attention.allocate`.

        The similarities that it keeps are ``[L, B, B]``: the columns from B to Bq, all zero, are left out.

        Args:
            rows: samples ``[B, N]`` of all layers, students first, in their own types.
            embedding: the parameters of each of them.
            s_layers: S.
            soft: what energies are divided by.
        """
        launches = self.launches(self.device)
        batch, layers = len(rows[0]), len(rows)
        parameters = self._parameters(embedding)
        (hidden_size, columns), size = embedding[0].weight1.shape, len(embedding[0].weight2)
        similarity = self._similarities(launches, rows, columns)
        hidden = self._empty(layers, batch, hidden_size)
        embeddings, length = self._empty(layers, batch, size), self._empty(layers, batch, 1)
        weight = self._empty(batch, s_layers, layers - s_layers)
        tile = attention_tile(self.acc_dtype)
        work = []
        for layer, (weight1, bias1, weight2, bias2) in enumerate(parameters):
            sizes = (layer, batch, columns, hidden_size, size)
            words: tuple[Word, ...] = (*sizes, weight1, weight2, hidden, embeddings, length, bias1, bias2, similarity)
            work.append(Work(tiles_of((batch, tile.block_m)), words))
        blocks = {"BLOCK_B": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
        types = {"TYPE": TYPES[parameters[0].weight1.dtype], "ACC": TYPES[self.acc_dtype]}
        launches.add(embed_kernel, work, {**types, **blocks}, self._threads(EMBED_THREADS))

        words = (embeddings, batch, s_layers, layers - s_layers, size, weight, float(soft))
        block_t = self._block_t(layers - s_layers)
        launches.add(
            energy_kernel,
            [Work(batch * tiles_of((s_layers, tile.block_m)), words)],
            {"ACC": TYPES[self.acc_dtype], "BLOCK_S": tile.block_m, "BLOCK_T": block_t, "BLOCK_K": tile.block_k},
            self._threads(PRODUCT_THREADS, PRODUCT_STAGES),
        )
        launches.run()
        return Allocation(weight, similarity, hidden, embeddings, length)

    def loss(self, weight: Tensor, mse: Tensor) -> Tensor:
        """``(weight * mse).sum() / (B*S)`` of ``[B, S, T]``."""
        launches = self.launches(self.device)
        block, block_r = LOSS_BLOCK
        programs = tiles_of((weight.numel(), block))
        loss, slots = self._empty(), self._empty(programs)
        words = (weight, mse, slots, loss, weight.numel(), weight.shape[0] * weight.shape[1], tickets(1))
        constants = {"ACC": TYPES[self.acc_dtype], "BLOCK": block, "BLOCK_R": block_r}
        launches.add(loss_kernel, [Work(programs, words)], constants, self._threads(LOSS_THREADS))
        launches.run()
        return loss

    def allocate_backward(
        self, mse: Tensor, saved: Allocation, embedding: Sequence[Embedding], soft: float
    ) -> tuple[Tensor, list[Embedding]]:
        """Gradients of the loss; see :func:`semckd_kernels.stages.attention.allocate_backward`.

        Args:
            mse: ``[B, S, T]``.
            saved: of :meth:`allocate`.
            embedding: as there.
            soft: as there.

        Returns:
            Gradients of the student's similarities ``[S, B, B]``, and of the parameters: each like its parameter, fp32
            for fp16 ones.
        """
        launches = self.launches(self.device)
        batch, s_layers, t_layers = saved.weight.shape
        parameters = self._parameters(embedding)
        (hidden_size, columns), size = embedding[0].weight1.shape, len(embedding[0].weight2)
        d_out, d_hidden = torch.empty_like(saved.embedding), torch.empty_like(saved.hidden)
        d_similarity = self._empty(s_layers, batch, batch)
        tile = attention_tile(self.acc_dtype)
        maps = (saved.hidden, saved.embedding, saved.length)
        work = []
        for layer, (weight1, _, weight2, _) in enumerate(parameters):
            words: tuple[Word, ...] = (
                layer,
                batch,
                columns,
                hidden_size,
                size,
                weight1,
                weight2,
                *maps,
                s_layers,
                t_layers,
            )
            words += (saved.weight, mse, d_out, d_hidden, d_similarity, float(batch * s_layers * soft))
            work.append(Work(tiles_of((batch, tile.block_m)), words))
        constants = {
            "TYPE": TYPES[parameters[0].weight1.dtype],
            "ACC": TYPES[self.acc_dtype],
            "BLOCK_B": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "BLOCK_T": self._block_t(t_layers),
        }
        launches.add(embed_backward_kernel, work, constants, self._threads(EMBED_THREADS))
        written, wanted = self._gradients(launches, embedding, saved, d_hidden, d_out)
        launches.run()
        return d_similarity, [Embedding(*map(_finished, *layer)) for layer in zip(written, wanted, strict=True)]

    def _parameters(self, embedding: Sequence[Embedding]) -> list[Embedding]:
        """Parameters of one type, contiguous: as they are where they are so."""
        types = {x.dtype for layer in embedding for x in layer}
        return [
            Embedding(*(aligned(x if len(types) == 1 else x.to(self.acc_dtype)) for x in layer)) for layer in embedding
        ]

    def _similarities(self, launches: Launches, rows: Sequence[Tensor], batch_size: int) -> Tensor:
        """``[L, B, B]``."""
        batch = len(rows[0])
        similarity = self._empty(len(rows), batch, batch)
        # by the type of slots and the side of a tile
        sums: dict[tuple[torch.dtype, int], list[Work]] = {}
        for dtype, layers in grouped_by([x.dtype for x in rows], range(len(rows))).items():
            tile, slot_dtype = similarity_tile(batch_size, dtype, self.arch), acc_dtype_of(dtype)
            blocks = -(-batch // tile.block_m)
            tiles = blocks * (blocks + 1) // 2
            run = split_terms(tiles * sum(rows[n].shape[1] for n in layers), tile.block_k)
            work = []
            for n in layers:
                numel = rows[n].shape[1]
                splits = -(-numel // run)
                slots = self._empty(splits, tiles, tile.block_m, tile.block_m, dtype=slot_dtype)
                work.append(Work(splits * tiles, (aligned(rows[n]), slots, batch, numel, run)))
                programs = tiles_of((batch * batch, SUM_BLOCK[1]))
                sums.setdefault((slot_dtype, tile.block_m), []).append(
                    Work(programs, (similarity, slots, batch, n, splits))
                )
            constants = {
                "TYPE": TYPES[dtype],
                "ACC": TYPES[slot_dtype],
                "VECTOR": vector_of(dtype.itemsize, [rows[n].shape[1] for n in layers]),
                "BLOCK_B": tile.block_m,
                "BLOCK_K": tile.block_k,
                "PRECISION": self._precision(dtype),
            }
            launches.add(similarity_kernel, work, constants, options_of(tile.num_warps, tile.num_stages))
        for (slot_dtype, block), work in sums.items():
            types = {"FROM": TYPES[slot_dtype], "TO": TYPES[self.acc_dtype]}
            blocks_of = {"BLOCK_B": block, "BLOCK_R": SUM_BLOCK[0], "BLOCK_I": SUM_BLOCK[1]}
            launches.add(sum_splits_kernel, work, {**types, **blocks_of}, options_of(SUM_WARPS))
        return similarity

    def _gradients(
        self, launches: Launches, embedding: Sequence[Embedding], saved: Allocation, d_hidden: Tensor, d_out: Tensor
    ) -> tuple[list[Embedding], list[Embedding]]:
        """What the launch writes of the parameters' gradients, and these as they are wanted: mostly the same."""
        wanted = [Embedding(*(torch.empty_like(x, dtype=kept_dtype(x.dtype)) for x in layer)) for layer in embedding]
        types = {x.dtype for layer in wanted for x in layer}
        kept = types.pop() if len(types) == 1 else self.acc_dtype
        written = [
            Embedding(*(x if x.dtype == kept else torch.empty_like(x, dtype=kept) for x in layer)) for layer in wanted
        ]
        tile = attention_tile(self.acc_dtype)
        batch, block = saved.weight.shape[0], tile.block_g
        work = []
        for layer, d in enumerate(written):
            # of each linear step: the gradient of its result, its input, the gradients of its parameters
            steps = (
                (d_hidden, saved.similarity, d.weight1, d.bias1),
                (d_out, saved.hidden, d.weight2, d.bias2),
            )
            for a, b, d_weight, d_bias in steps:
                m, present, columns = a.shape[2], b.shape[2], d_weight.shape[1]
                words = (a, layer * batch * m, b, layer * batch * present, batch, m, present, columns)
                programs = tiles_of((m, block), (columns, block))
                work.append(Work(programs, (*words, d_weight, *d_weight.stride(), d_bias)))
        constants = {
            "TO": TYPES[kept],
            "ACC": TYPES[self.acc_dtype],
            "BLOCK_M": block,
            "BLOCK_N": block,
            "BLOCK_K": tile.block_k,
        }
        launches.add(parameter_gradients_kernel, work, constants, self._threads(PRODUCT_THREADS, PRODUCT_STAGES))
        return written, wanted

    def _threads(self, threads: int, num_stages: int = 1) -> dict[str, Any]:
        return options_of(threads // warp_size(self.arch), num_stages)

    def _block_t(self, t_layers: int) -> int:
        """One program has all teacher layers of a sample."""
        return max(16, 1 << (t_layers - 1).bit_length())


def _finished(written: Tensor, wanted: Tensor) -> Tensor:
    return wanted if written is wanted else wanted.copy_(written)
