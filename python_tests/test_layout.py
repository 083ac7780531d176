"""The rules of memory layout that kernels, fakes and guards share."""

from __future__ import annotations

import torch

from semckd_kernels.layout import packed_strides, row_major_strides, sample_order


def test_sample_order() -> None:
    x = torch.empty(2, 3, 4, 5)
    assert sample_order(x) == (20, 5, 1)
    assert sample_order(x.contiguous(memory_format=torch.channels_last)) == (1, 15, 3)
    assert sample_order(x[:, :, :2]) is None
    assert sample_order(x[:, 0]) == (5, 1)
    assert sample_order(x[:, :1].expand(2, 3, 4, 5)) is None
    # dimensions of one element lie anywhere
    assert sample_order(torch.empty(2, 3, 1, 1).as_strided((2, 3, 1, 1), (3, 1, 77, 5))) == (1,)
    assert sample_order(torch.empty(2, 1)) == ()


def test_packed_strides() -> None:
    x = torch.empty(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert packed_strides(x) == row_major_strides(x.shape) == [60, 20, 5, 1]
    assert packed_strides(last) == [60, 1, 15, 3]
    assert packed_strides(torch.cat([last, last])[::2]) == [60, 1, 15, 3]
    assert packed_strides(last[:1].expand_as(x)) == [60, 1, 15, 3]
    # gaps between elements of a sample
    assert packed_strides(torch.cat([last, last], 1)[:, :3]) == [60, 20, 5, 1]
