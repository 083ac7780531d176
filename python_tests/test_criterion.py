"""The whole criterion on every backend that serves it, against the reference in fp64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from criterion_problems import CASES, Case, Outcome, converted, step
from served import CRITERION_SERVED, Backend
from tolerances import assert_close, assert_close_on_average

import semckd_kernels as sk

SQUARE = CASES["square"]
F32, F64 = torch.float32, torch.float64
# each kind of pair once, the last of too few pixels for fp32
SMALL = Case([6], [4, 8, 12], [(4, 4)], [(8, 8), (4, 4), (2, 2)])
# a teacher that is pooled, and a student to a size that does not divide its own
TINY = Case([6], [4, 8], [(4, 4)], [(8, 8), (2, 3)])
# Interpreted kernels take a second a pair, and what they do at the edges of tiles is test_criterion_stages.py's: each
# case once, with the fewest pairs that it needs, in the type that has most to find
INTERPRETED = {
    ("square", F32): SMALL,
    ("square", F64): SMALL,
    # more pixels than a tile
    ("sizes that do not divide", F32): Case([6], [4, 8], [(7, 5)], [(9, 3), (5, 5)]),
    ("one sample", F32): CASES["one sample"],
    ("full batch, temperature", F64): Case([6], [5], [(2, 2)], [(4, 4)], batch=8, batch_size=8, soft=0.5),
    # more channels than a tile has rows or columns, between the convolutions and outside
    ("many channels", F64): Case([20], [33], [(3, 3)], [(2, 3)], batch=2),
    # which are computed in fp64
    ("single pixels", F32): Case([3], [2, 5], [(1, 1)], [(1, 1), (3, 3)], batch=7),
}


@pytest.fixture(params=CRITERION_SERVED, ids=lambda b: b.name)
def fused(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture
def square(fused: Backend) -> Case:
    return TINY if fused.interpreted else SQUARE


def compare(case: Case, fused: Backend, dtype: torch.dtype = torch.float32, training: bool = True) -> None:
    """Everything a step leaves behind, judged by what the reference reaches in the same type."""
    outcomes = []
    for backend, kind in ((fused.name, dtype), ("reference", dtype), ("reference", torch.float64)):
        module = case.module(backend, fused.device).to(kind).train(training)
        feat_s, feat_t = case.maps(fused.device)
        outcomes.append(step(module, converted(feat_s, kind), converted(feat_t, kind)))
    value, eager, exact = (outcome.tensors for outcome in outcomes)
    # differences of nearly equal errors: what rounding leaves of a single gradient is chance
    attention = [name for name in value if name.startswith(("query", "key"))]
    for name in value.keys() - set(attention):
        assert_close(value[name], eager[name], exact[name], name)
    assert_close_on_average(*([side[name] for name in attention] for side in (value, eager, exact)), "attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_reference(fused: Backend, name: str, dtype: torch.dtype) -> None:
    if not fused.interpreted:
        compare(CASES[name], fused, dtype)
    elif (name, dtype) in INTERPRETED:
        compare(INTERPRETED[name, dtype], fused, dtype)
    else:
        pytest.skip("interpreted kernels are slow: each case in one type")


def test_running_statistics(fused: Backend, square: Case) -> None:
    compare(square, fused, training=False)


def seeds(fused: Backend) -> range:
    """In half precision a ReLU that flips decides about a single run, and even more about one of small maps."""
    return range(2 if fused.interpreted else 6)


def assert_close_by_group(value: list[Outcome], eager: list[Outcome], exact: list[Outcome]) -> None:
    """Outcomes of several runs, all tensors of a kind together."""
    for kind in ("loss", "weight", "pair_mse", "d_feat_s", "query", "key", "regressor"):
        names = [name for name in value[0].tensors if name.startswith(kind)]
        sides = [[outcome.tensors[n] for outcome in side for n in names] for side in (value, eager, exact)]
        assert_close_on_average(*sides, kind)


@pytest.mark.slow_interpreted(dtype=torch.float16)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("half_maps", [True, False])
def test_autocast(fused: Backend, dtype: torch.dtype, half_maps: bool) -> None:
    if fused.interpreted and half_maps == (dtype == torch.float16):
        pytest.skip("interpreted kernels are slow: bf16 maps, and fp32 maps with fp16")

    def run(backend: str, autocast: bool, kind: torch.dtype, seed: int) -> Outcome:
        module = SQUARE.module(backend, fused.device, kind)
        # what a student under autocast gives, or a network outside of it
        maps = [converted(x, dtype if half_maps else kind) for x in SQUARE.maps(fused.device, seed=seed)]
        if not autocast:
            maps = [converted(x, kind) for x in maps]
        with torch.autocast(fused.device, dtype, enabled=autocast):
            return step(module, *maps)

    value, eager, exact = [], [], []
    for seed in seeds(fused):
        value.append(run(fused.name, True, torch.float32, seed))
        eager.append(run("reference", True, torch.float32, seed))
        exact.append(run("reference", False, torch.float64, seed))
    assert_close_by_group(value, eager, exact)


@pytest.mark.slow_interpreted(dtype=torch.bfloat16)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_module_in_half_precision(fused: Backend, dtype: torch.dtype) -> None:
    def run(backend: str, kind: torch.dtype, seed: int) -> Outcome:
        module = SQUARE.module(backend, fused.device, dtype).to(kind)
        return step(module, *(converted(converted(x, dtype), kind) for x in SQUARE.maps(fused.device, seed=seed)))

    value, eager, exact = [], [], []
    for seed in seeds(fused):
        value.append(run(fused.name, dtype, seed))
        eager.append(run("reference", dtype, seed))
        exact.append(run("reference", torch.float64, seed))
    assert_close_by_group(value, eager, exact)
    for name, tensor in value[0].items():
        expected = torch.float32 if name in ("loss", "weight", "pair_mse") or "running" in name else dtype
        assert tensor.dtype == expected, name


# 144 and 576 pairs
@pytest.mark.slow_interpreted
@pytest.mark.parametrize("t", [6, pytest.param(24, marks=pytest.mark.slow)])
def test_many_layers(fused: Backend, t: int) -> None:
    # interpreted kernels would take an hour for 576 pairs
    s, t = (2, 2) if fused.interpreted else (24, t)
    case = Case([2] * s, [3] * t, [(2, 2)] * s, [(2, 2)] * t, batch=4, batch_size=4)
    maps = case.maps(fused.device, torch.float64)
    got, exact = (step(case.module(name, fused.device, torch.float64), *maps) for name in (fused.name, "reference"))
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, exact.tensors[name], msg=name)


def test_memory_formats_give_the_same_bits(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    expected = step(module, feat_s, feat_t)

    def channels_last(maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [x.detach().to(memory_format=torch.channels_last).requires_grad_(x.requires_grad) for x in maps]

    changed = channels_last(feat_s)
    got = step(module, changed, channels_last(feat_t))
    for name, tensor in got.items():
        assert torch.equal(tensor, expected.tensors[name]), name
    for n, (x, y) in enumerate(zip(changed, feat_s, strict=True)):
        assert got.tensors[f"d_feat_s[{n}]"].stride() == x.stride()
        assert expected.tensors[f"d_feat_s[{n}]"].stride() == y.stride()


def test_module_in_channels_last(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device, torch.float64)
    maps = square.maps(fused.device, torch.float64)
    expected = step(module, *maps)
    got = step(module.to(memory_format=torch.channels_last), *maps)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected.tensors[name], msg=name)
    for name, parameter in module.named_parameters():
        # autograd takes such a gradient over without a copy
        assert got.tensors[name].stride() == parameter.stride(), name


def test_strided_maps(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    expected = step(module, feat_s, feat_t)
    wide = [torch.cat([x.detach(), x.detach() + 1], 3) for x in feat_s]
    sliced = [x[..., : y.shape[3]].requires_grad_() for x, y in zip(wide, feat_s, strict=True)]
    got = step(module, sliced, [x.flip(0).flip(0) for x in feat_t])
    for name, tensor in got.items():
        assert torch.equal(tensor, expected.tensors[name]), name


@pytest.mark.slow_interpreted(class_token=False)
@pytest.mark.parametrize("class_token", [False, True])
def test_tokens(fused: Backend, class_token: bool) -> None:
    case = Case([6, 6], [5, 5], [(3, 3)] * 2, [(3, 3)] * 2)
    module = case.module(fused.name, fused.device)
    feat_s, feat_t = case.maps(fused.device)
    expected = module(feat_s, feat_t)
    module = copy.deepcopy(module)
    module.class_token = class_token

    def tokens(x: torch.Tensor) -> torch.Tensor:
        rows = x.detach().flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(rows[:, :1], 9), rows], 1) if class_token else rows

    students = [tokens(x).requires_grad_() for x in feat_s]
    loss, _, mse = module(students, [tokens(x) for x in feat_t])
    assert torch.equal(loss, expected.loss)
    assert torch.equal(mse, expected.pair_mse)
    loss.backward()
    expected.loss.backward()
    for x, y in zip(students, feat_s, strict=True):
        assert torch.equal(
            x.grad[:, 1:] if class_token else x.grad, tokens(y.grad)[:, 1:] if class_token else tokens(y.grad)
        )


def test_same_bits_every_time(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    first, second = (step(module, *square.maps(fused.device)) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_gradcheck(fused: Backend) -> None:
    case = Case([3, 2], [2, 3], [(4, 3), (2, 2)], [(4, 3), (3, 3)], batch=3, batch_size=4)
    if fused.interpreted:
        case = Case([2], [3], [(4, 3)], [(2, 2)], batch=3, batch_size=4)
    module = case.module(fused.name, fused.device, torch.float64)
    names = [name for name, _ in module.named_parameters()]
    feat_s, feat_t = case.maps(fused.device, torch.float64)
    leaves = [*feat_s, *module.parameters()]

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, leaves[len(feat_s) :], strict=True))
        return torch.func.functional_call(module, parameters, (leaves[: len(feat_s)], feat_t)).loss

    def loss_of_all(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([x.numel() for x in leaves])
        return loss(*(part.view_as(x) for part, x in zip(parts, leaves, strict=True)))

    # a random projection of the Jacobian: every entry of it would take minutes
    if fused.interpreted:
        flat = torch.cat([x.detach().flatten() for x in leaves]).requires_grad_()
        assert torch.autograd.gradcheck(loss_of_all, flat, fast_mode=True)
    else:
        assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_operator(fused: Backend) -> None:
    """Schema, fake and autograd registration, as torch.compile relies on them."""
    # strides of results show only where no dimension is 1
    case = Case([3, 2], [2, 3], [(2, 3), (3, 2)], [(3, 3), (2, 2)], batch=3, batch_size=4)
    if fused.interpreted:
        case = replace(case, s_n=[3], s_sizes=[(2, 3)])
    module = case.module(fused.name, fused.device)
    feat_s, feat_t = case.maps(fused.device)
    pairs = [module.projection(i, j) for i in range(len(feat_s)) for j in range(2)]
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    arguments = (
        feat_s,
        feat_t,
        [p for m in module.embeddings() for p in m.parameters()],
        [p for m in pairs for p in m.parameters()],
        [x for m in norms for x in (m.running_mean, m.running_var)],
        1.0,
        [1e-5] * len(norms),
        [True, False] * len(pairs),
        torch.float32,
        True,
        fused.name,
    )
    torch.library.opcheck(torch.ops.semckd_criterion.run.default, arguments)


@pytest.mark.slow_interpreted(momentum=0.3)
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_momentum(fused: Backend, square: Case, momentum: float | None) -> None:
    modules = [square.module(name, fused.device, torch.float64) for name in (fused.name, "reference")]
    for module in modules:
        for n, norm in enumerate(m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = momentum if n % 2 else 0.1
        for seed in range(2):
            module(*square.maps(fused.device, torch.float64, seed))
    for (name, a), (_, b) in zip(*(m.named_buffers() for m in modules), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_frozen_batch_norms(fused: Backend, square: Case) -> None:
    modules = [square.module(name, fused.device, torch.float64) for name in (fused.name, "reference")]
    for module in modules:
        for n, norm in enumerate(m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.train(n % 3 == 0)
    got, expected = (step(m, *square.maps(fused.device, torch.float64)) for m in modules)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected.tensors[name], msg=name)


@pytest.mark.slow_interpreted(bad=float("inf"))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_reaches_the_loss(fused: Backend, square: Case, bad: float) -> None:
    module = square.module(fused.name, fused.device)
    for which in range(2):
        maps = [[x.detach().clone() for x in side] for side in square.maps(fused.device)]
        maps[which][0][2, 1, 1, 1] = bad
        assert not module(*maps).loss.isfinite()
    # running statistics hold it now, as the reference's would; the teacher's alone reaches one sample only
    module = square.module(fused.name, fused.device)
    mse = module(*maps).pair_mse
    assert mse[2, :, 0].isnan().all() or not mse[2, :, 0].isfinite().any()
    others = [b for b in range(len(mse)) if b != 2]
    assert mse[others].isfinite().all()


def test_empty_batch(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = replace(square, batch=0).maps(fused.device)
    loss, weight, mse = module(feat_s, feat_t)
    loss.backward()
    assert loss.item() == 0
    assert weight.shape == mse.shape == (0, len(square.s_n), len(square.t_n))
    for parameter in module.parameters():
        assert not parameter.grad.any()


def test_forward_alone(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    expected = copy.deepcopy(module)(feat_s, feat_t)
    with torch.no_grad():
        got = module(feat_s, feat_t)
    assert not got.loss.requires_grad
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b.detach())
    # statistics move in training mode, gradient or not
    assert module.projection(0, 0).regressor[1].num_batches_tracked == 1


def test_small_batches_equal_padding_with_zeros(fused: Backend, square: Case) -> None:
    # a sample of zeros is similar to none: the attention of the rest cannot see it
    module = square.module(fused.name, fused.device).eval()
    feat_s, feat_t = square.maps(fused.device)
    padded = [[torch.cat([x.detach(), torch.zeros_like(x[:2])]) for x in maps] for maps in (feat_s, feat_t)]
    torch.testing.assert_close(module(feat_s, feat_t).weight, module(*padded).weight[:6])


def test_state_dicts_of_the_attention_module() -> None:
    torch.manual_seed(3)
    attention, criterion = sk.SelfA(2, 3, 8, [6, 10], [4, 8, 12]), sk.SemCKD(8, [6, 10], [4, 8, 12])
    criterion.load_state_dict(attention.state_dict())
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, attention.state_dict()[name])
    sk.SelfA(2, 3, 8, [6, 10], [4, 8, 12]).load_state_dict(criterion.state_dict())


def test_equals_attention_module_and_loss(fused: Backend, square: Case) -> None:
    attention = sk.SelfA(len(square.s_n), len(square.t_n), 8, square.s_n, square.t_n).double().to(fused.device)
    criterion = square.module(fused.name, fused.device, torch.float64)
    criterion.load_state_dict(attention.state_dict())
    maps = square.maps(fused.device, torch.float64)
    torch.testing.assert_close(criterion(*maps).loss, sk.SemCKDLoss()(*attention(*maps)))


BAD_CONSTRUCTION = [
    ((0, [1], [1]), {}, "batch_size must be at least 1, got 0"),
    ((4, [], [1]), {}, r"s_n must be positive numbers of channels, got \[\]"),
    ((4, [1], [2, 0]), {}, r"t_n must be 2 positive numbers of channels, got \[2, 0\]"),
    ((4, [1], [1]), {"soft": 0}, "soft must be positive, got 0"),
    ((4, [1], [1]), {"backend": "gpu"}, "backend must be one of reference, cpu, cuda, triton, got 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_CONSTRUCTION)
def test_bad_construction(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.SemCKD(*arguments, **options)


def test_bad_calls(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    count = len(feat_t)
    with pytest.raises(ValueError, match=f"feat_t must hold {count} maps, got {count - 1}"):
        module(feat_s, feat_t[:-1])
    with pytest.raises(ValueError, match="up to batch_size=8 samples, got 9"):
        module(*replace(square, batch=9).maps(fused.device))
    with pytest.raises(TypeError, match=r"feat_t\[1\] must be float32, .* got torch.int64"):
        module(feat_s, [feat_t[0], feat_t[1].long(), *feat_t[2:]])
    single = Case([2], [3], [(1, 1)], [(2, 2)], batch=1)
    with pytest.raises(ValueError, match=r"feat_s\[0\] and feat_t\[0\] meet at 1 x 1"):
        single.module(fused.name, fused.device)(*single.maps(fused.device))


def test_backend_without_kernels_of_the_criterion() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot serve"):
        SQUARE.module("cuda", device)(*SQUARE.maps(device))
