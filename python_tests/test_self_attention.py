"""``SelfA`` against the formulas, written once more and differently, and every row of what users stumble over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import semckd_kernels as sk

S_N, T_N = [6, 10], [4, 8, 12]
S_SIZES, T_SIZES = [(8, 8), (4, 4)], [(16, 16), (8, 8), (4, 4)]
BATCH = 12


def make_maps(batch: int = BATCH, s_sizes=S_SIZES, t_sizes=T_SIZES, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    student = [torch.randn(batch, c, *size, generator=generator) for c, size in zip(S_N, s_sizes, strict=True)]
    teacher = [torch.randn(batch, c, *size, generator=generator) for c, size in zip(T_N, t_sizes, strict=True)]
    return student, teacher


def make_module(**options) -> sk.SelfA:
    torch.manual_seed(1)
    return sk.SelfA(2, 3, BATCH, S_N, T_N, **options)


def expected_weight(module: sk.SelfA, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Sample by sample, in fp64, from the formulas."""

    def embed(name: str, feature: Tensor) -> Tensor:
        mlp = module.get_submodule(name)
        rows = []
        for b in range(feature.shape[0]):
            similarities = [(feature[b].double() * other.double()).sum() for other in feature]
            row = torch.zeros(BATCH, dtype=torch.float64)
            row[: len(similarities)] = torch.stack(similarities)
            hidden = (mlp.linear1.weight.double() @ row + mlp.linear1.bias.double()).clamp(min=0)
            out = mlp.linear2.weight.double() @ hidden + mlp.linear2.bias.double()
            rows.append(out / (out * out).sum().sqrt())
        return torch.stack(rows)

    q = [embed(f"query_weight{i}", f) for i, f in enumerate(student)]
    k = [embed(f"key_weight{j}", f) for j, f in enumerate(teacher)]
    energy = torch.stack([torch.stack([(a * b).sum(1) for b in k], 1) for a in q], 1)
    exp = energy.exp()
    return exp / exp.sum(2, keepdim=True)


@pytest.mark.parametrize("batch", [BATCH, 5, 1])
def test_weight(batch: int) -> None:
    module = make_module()
    student, teacher = make_maps(batch)
    weight = module.eval()(student, teacher)[2]
    assert weight.shape == (batch, 2, 3)
    torch.testing.assert_close(weight.double(), expected_weight(module, student, teacher), rtol=1e-5, atol=1e-6)


def test_projections_and_targets() -> None:
    module = make_module()
    student, teacher = make_maps()
    s_value, f_target, _ = module(student, teacher)
    for i, s in enumerate(student):
        for j, t in enumerate(teacher):
            size = min(s.shape[2], t.shape[2])
            assert s_value[i][j].shape == f_target[i][j].shape == (BATCH, T_N[j], size, size)
            torch.testing.assert_close(f_target[i][j], F.adaptive_avg_pool2d(t, size))
            convs = module.get_submodule(f"regressor{i}{j}").regressor
            x = F.conv2d(F.adaptive_avg_pool2d(s, size), convs[0].weight)
            x = F.batch_norm(x, None, None, convs[1].weight, convs[1].bias, training=True).relu()
            x = F.conv2d(x, convs[3].weight, padding=1)
            x = F.batch_norm(x, None, None, convs[4].weight, convs[4].bias, training=True).relu()
            torch.testing.assert_close(s_value[i][j], F.conv2d(x, convs[6].weight))


def test_maps_of_one_size_are_not_copied() -> None:
    student, teacher = make_maps()
    f_target = make_module()(student, teacher)[1]
    assert f_target[0][1] is teacher[1]
    assert f_target[1][2] is teacher[2]


def test_every_parameter_gets_a_gradient() -> None:
    module = make_module()
    sk.SemCKDLoss()(*module(*make_maps())).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_student_gets_gradient_through_similarity_and_projection() -> None:
    module = make_module()
    student, teacher = make_maps()
    student = [x.requires_grad_() for x in student]
    s_value, _, weight = module(student, teacher)
    for output in (weight[:, 0, 0].sum(), s_value[0][0].square().sum()):
        (gradient,) = torch.autograd.grad(output, student[0], retain_graph=True)
        assert gradient.abs().max() > 0


def test_small_batches_equal_padding_with_zeros() -> None:
    # a sample of zeros has no similarity with any other: the rest of the batch cannot see it
    module = make_module().eval()
    student, teacher = make_maps()
    padded = [[torch.cat([x[:7], torch.zeros_like(x[7:])]) for x in maps] for maps in (student, teacher)]
    small = module([x[:7] for x in student], [x[:7] for x in teacher])[2]
    torch.testing.assert_close(small, module(*padded)[2][:7])


def test_larger_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="up to input_channel=12 samples, got 13"):
        make_module()(*make_maps(13))


def test_tiny_attention_still_learns() -> None:
    module = sk.SelfA(2, 3, 2, S_N, T_N)
    assert module.get_submodule("query_weight0").linear2.out_features == 1
    weight = module.eval()(*make_maps(2))[2]
    weight[:, 0, 0].sum().backward()
    assert module.get_submodule("key_weight0").linear2.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_similarity_in_fp32(dtype: torch.dtype) -> None:
    module = make_module().eval()
    # similarities of about 1e8: far beyond fp16
    student, teacher = ([(x * 1000).to(dtype) for x in maps] for maps in make_maps())
    with torch.autocast("cpu", dtype):
        s_value, _, weight = module(student, teacher)
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    assert s_value[0][0].dtype == dtype
    exact = expected_weight(module, student, teacher)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-4, atol=1e-5)


def test_zero_rows_give_zeros_not_nan() -> None:
    module = make_module()
    for parameter in module.get_submodule("query_weight0").parameters():
        nn.init.zeros_(parameter)
    student, teacher = make_maps()
    weight = module(student, teacher)[2]
    torch.testing.assert_close(weight[:, 0], torch.full((BATCH, 3), 1 / 3))
    weight.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_maps_that_are_not_square() -> None:
    student, teacher = make_maps(s_sizes=[(8, 3), (4, 7)], t_sizes=[(5, 9), (8, 2), (4, 4)])
    s_value, f_target, weight = make_module()(student, teacher)
    assert s_value[0][0].shape[2:] == (5, 3)
    assert s_value[1][1].shape[2:] == (4, 2)
    torch.testing.assert_close(f_target[1][0], F.adaptive_avg_pool2d(teacher[0], (4, 7)))
    sk.SemCKDLoss()(s_value, f_target, weight).backward()


@pytest.mark.parametrize("class_token", [False, True])
def test_tokens(class_token: bool) -> None:
    def tokens(x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(rows[:, :1], 9), rows], 1) if class_token else rows

    module = make_module(class_token=class_token)
    student, teacher = make_maps()
    got = module([tokens(x) for x in student], [tokens(x) for x in teacher])
    expected = module(student, teacher)
    torch.testing.assert_close(got[2], expected[2])
    for row, expected_row in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        for x, y in zip(row, expected_row, strict=True):
            torch.testing.assert_close(x, y)


def official_names(module: sk.SelfA) -> list[str]:
    names = []
    for kind, count in (("query_weight", 2), ("key_weight", 3)):
        for n in range(count):
            names += [f"{kind}{n}.linear{m}.{p}" for m in (1, 2) for p in ("weight", "bias")]
    for i in range(2):
        for j in range(3):
            for n in range(7):
                kinds = {0: ["weight"], 3: ["weight"], 6: ["weight"]}.get(n, [])
                if n in (1, 4):
                    kinds = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
                names += [f"regressor{i}{j}.regressor.{n}.{kind}" for kind in kinds]
    return names


def test_state_dict_has_the_official_names() -> None:
    module = make_module()
    assert set(module.state_dict()) == set(official_names(module))


def test_checkpoints_load_as_part_of_a_larger_module() -> None:
    source, target = make_module(), nn.ModuleDict({"criterion": sk.SelfA(2, 3, BATCH, S_N, T_N)})
    target.load_state_dict({f"criterion.{key}": value for key, value in source.state_dict().items()})
    assert torch.equal(target["criterion"].state_dict()["key_weight2.linear2.bias"], source.key_weight2.linear2.bias)


def test_wrong_checkpoints_are_still_refused() -> None:
    state = make_module().state_dict()
    state["regressor00.regressor.7.weight"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make_module().load_state_dict(state)
    state = make_module().state_dict()
    del state["regressor12.regressor.0.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        make_module().load_state_dict(state)


def test_names_that_would_collide() -> None:
    module = sk.SelfA(12, 12, 4, [2] * 12, [1] * 12)
    names = {key.partition(".")[0] for key in module.state_dict() if key.startswith("regressor")}
    assert len(names) == 144
    assert {"regressor1_11", "regressor11_1", "regressor0_0"} <= names
    # an official checkpoint of that size has one module under the colliding name: both pairs used it
    official = {}
    for key, value in module.state_dict().items():
        official[key.replace("_", "", 1) if key.startswith("regressor") else key] = value
    other = sk.SelfA(12, 12, 4, [2] * 12, [1] * 12)
    other.load_state_dict(official)
    shared = official["regressor111.regressor.0.weight"]
    assert torch.equal(other.state_dict()["regressor1_11.regressor.0.weight"], shared)
    assert torch.equal(other.state_dict()["regressor11_1.regressor.0.weight"], shared)


BAD_CALLS = {
    "number of maps": (lambda s, t: (s[:1], t), ValueError, "feat_s must hold 2 maps, got 1"),
    "channels": (
        lambda s, t: (s, [t[1], *t[1:]]),
        ValueError,
        r"feat_t\[0\] must have 4 channels, got \[12, 8, 8, 8\]",
    ),
    "batch": (lambda s, t: (s, [t[0], t[1][:3], t[2]]), ValueError, r"feat_t\[1\] must have the batch size"),
    "type": (lambda s, t: ([s[0].int(), s[1]], t), TypeError, r"feat_s\[0\] must be float32, .* got torch.int32"),
    "no tensor": (lambda s, t: ([s[0], None], t), TypeError, r"feat_s\[1\] must be a tensor, got NoneType"),
    "no list": (lambda s, t: (s[0], t), TypeError, "feat_s must be a list of tensors, got Tensor"),
    "dimensions": (lambda s, t: ([s[0].flatten(1), s[1]], t), ValueError, r"feat_s\[0\] must be a map \[B, c, h, w\]"),
    "tokens": (
        lambda s, t: ([torch.zeros(12, 17, 6), s[1]], t),
        ValueError,
        r"feat_s\[0\] must hold a square number of tokens, got 17; class_token=True drops",
    ),
    "tokens behind registers": (
        lambda s, t: ([torch.zeros(12, 201, 6), s[1]], t),
        ValueError,
        r"feat_s\[0\] must .* got 201; drop leading tokens .* \(x\[:, 5:\] with class_token=False leaves 14 x 14\)"
        r".*\(shape \[12, 201, 6\]\)",
    ),
    "no tokens": (
        lambda s, t: ([torch.zeros(12, 0, 6), s[1]], t),
        ValueError,
        r"square number of tokens, got 0 \(shape \[12, 0, 6\]\)",
    ),
    "one spatial axis": (
        lambda s, t: ([torch.zeros(12, 6, 49), s[1]], t),
        ValueError,
        r"feat_s\[0\] must have 6 channels, .* got \[12, 6, 49\]; a map \[B, c, l\] becomes one of height 1 with",
    ),
    "tokens of another width": (
        lambda s, t: (s, [torch.zeros(12, 49, 5), *t[1:]]),
        ValueError,
        r"feat_t\[0\] must have 4 channels, as tokens \[B, N, 4\] or a map \[B, 4, h, w\], got \[12, 49, 5\]$",
    ),
    "three spatial axes": (
        lambda s, t: (s, [t[0].unsqueeze(2), *t[1:]]),
        ValueError,
        r"feat_t\[0\] must be a map .* got \[12, 4, 1, 16, 16\]; fold the depth into the height with x.flatten\(2, 3\)",
    ),
    "sparse": (
        lambda s, t: ([s[0].to_sparse(), s[1]], t),
        TypeError,
        r"feat_s\[0\] must be a dense tensor, got torch.sparse_coo: use x.to_dense\(\)",
    ),
    "compressed rows": (
        lambda s, t: (s, [t[0], t[1].to_mkldnn(), t[2]]),
        TypeError,
        r"feat_t\[1\] must be a dense tensor, got torch._mkldnn",
    ),
    "nested": (
        lambda s, t: ([torch.nested.nested_tensor(list(s[0])), s[1]], t),
        TypeError,
        r"feat_s\[0\] must be a dense tensor, got a nested one: pad it",
    ),
    "ragged": (
        lambda s, t: (s, [torch.nested.nested_tensor(list(t[0]), layout=torch.jagged), *t[1:]]),
        TypeError,
        r"feat_t\[0\] must be a dense tensor, got a nested one",
    ),
    "complex": (lambda s, t: ([s[0].cfloat(), s[1]], t), TypeError, r"feat_s\[0\] must be float32, .* torch.complex64"),
    "student on meta": (
        lambda s, t: ([s[0], s[1].to("meta")], t),
        ValueError,
        r"feat_s\[1\] must have .* device of feat_s\[0\], 12 on cpu, got 12 on meta",
    ),
    "all on meta": (
        lambda s, t: ([x.to("meta") for x in s], [x.to("meta") for x in t]),
        ValueError,
        r"key_weight0.linear1.weight must be on the device of the maps, meta, got cpu",
    ),
    "no pixels": (lambda s, t: ([s[0][..., :0], s[1]], t), ValueError, r"feat_s\[0\] must have at least one element"),
    "device": (lambda s, t: (s, [t[0].to("meta"), *t[1:]]), ValueError, r"feat_t\[0\] must have .* device of feat_s"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name: str) -> None:
    change, error, message = BAD_CALLS[name]
    criterion = sk.SemCKD(BATCH, S_N, T_N)
    for module in (make_module(), criterion):
        with pytest.raises(error, match=message):
            module(*change(*make_maps()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 12, [], T_N), "s_len must be at least 1, got 0"),
        ((2, 3, 0, S_N, T_N), "input_channel must be at least 1, got 0"),
        ((2, 3, 12, S_N[:1], T_N), r"s_n must be 2 positive numbers of channels, got \[6\]"),
        ((2, 3, 12, S_N, [4, 0, 8]), r"s_t must be 3 positive numbers of channels, got \[4, 0, 8\]"),
        ((2, 3, 12, S_N, T_N, 0), "factor must be at least 1, got 0"),
    ],
)
def test_bad_construction(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.SelfA(*arguments)
