"""Modules that users change: what the kernels do not compute is computed by calling them, or refused by name."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from criterion_problems import Case
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune

import semckd_kernels as sk
from semckd_kernels.modules import contract
from semckd_kernels.modules.cross_layer import SimilarityEmbedding

CASE = Case([5], [6, 7], [(4, 4)], [(4, 4), (2, 3)], batch=4, batch_size=8)
REASON = "the reference path, which calls each module, serves this criterion"


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class LoudConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class LoudMLP(SimilarityEmbedding):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, 1)


def layers(c: nn.Module) -> nn.Sequential:
    return c.get_submodule("regressor01.regressor")


def put(name: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    def edit(c: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(c.get_submodule(parent), child, make(c.get_submodule(name)))

    return edit


def at(name: str, change: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    return lambda c: void(change(c.get_submodule(name)))


def void(_: object) -> None:
    return None


def norms(c: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in c.modules() if isinstance(m, nn.BatchNorm2d)]


def no_statistics(m: nn.Module) -> None:
    m.track_running_stats = False
    m.running_mean = m.running_var = m.num_batches_tracked = None


def with_forward(m: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    forward = m.forward
    m.forward = lambda x: change(forward(x))


def of_class(m: nn.Module, kind: type) -> None:
    m.__class__ = kind


def narrower(c: nn.Module) -> None:
    """Structured pruning: fewer channels between the convolutions."""
    kept = slice(0, 5)
    for n, axes in ((0, 1), (1, 1), (3, 2), (4, 1), (6, 0)):
        layer = layers(c)[n]
        with torch.no_grad():
            weight = layer.weight[kept] if axes else layer.weight
            layer.weight = nn.Parameter(weight[:, kept] if n in (3, 6) else weight)
        if n in (1, 4):
            layer.bias = nn.Parameter(layer.bias.detach()[kept])
            layer.running_mean, layer.running_var = layer.running_mean[kept], layer.running_var[kept]


CONV, NORM, RELU = "regressor01.regressor.3", "regressor01.regressor.4", "regressor01.regressor.2"
BIAS = lambda m: m.register_parameter("bias", nn.Parameter(torch.ones(m.out_channels)))  # noqa: E731
# what is changed, and how the sentence names it
CHANGES: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "pruned convolution": (
        at(CONV, lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        f"{CONV} has forward pre hooks",
    ),
    "pruned BatchNorm": (at(NORM, lambda m: prune.l1_unstructured(m, "weight", 0.5)), f"{NORM} has forward pre hooks"),
    "pruned query": (
        at("query_weight0.linear1", lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        "query_weight0.linear1 has forward pre hooks",
    ),
    "weight_norm": (at(CONV, parametrizations.weight_norm), f"{CONV} is a ParametrizedConv2d"),
    "spectral_norm": (at(CONV, parametrizations.spectral_norm), f"{CONV} is a ParametrizedConv2d"),
    "parametrized key": (
        at("key_weight1.linear2", lambda m: parametrize.register_parametrization(m, "weight", Doubled())),
        "key_weight1.linear2 is a ParametrizedLinear",
    ),
    "parametrized BatchNorm": (
        at(NORM, lambda m: parametrize.register_parametrization(m, "bias", Doubled())),
        f"{NORM} is a ParametrizedBatchNorm2d",
    ),
    "hook of a layer": (
        at(RELU, lambda m: m.register_forward_hook(lambda _m, _i, out: 2 * out)),
        f"{RELU} has forward",
    ),
    "pre-hook of a layer": (
        at("regressor00.regressor.0", lambda m: m.register_forward_pre_hook(lambda _m, i: (2 * i[0],))),
        "regressor00.regressor.0 has forward pre hooks",
    ),
    "hook of a sequence": (
        at("regressor01.regressor", lambda m: m.register_forward_hook(lambda _m, _i, out: out + 1)),
        "regressor01.regressor has forward hooks",
    ),
    "hook of a projection": (
        at("regressor01", lambda m: m.register_forward_hook(lambda _m, _i, out: out + 1)),
        "regressor01 has forward hooks",
    ),
    "hook of a key": (
        at("key_weight0", lambda m: m.register_forward_hook(lambda _m, _i, out: -out)),
        "key_weight0 has forward hooks",
    ),
    "backward hook": (
        at(NORM, lambda m: m.register_full_backward_hook(lambda _m, gi, _go: (2 * gi[0],))),
        f"{NORM} has backward hooks",
    ),
    "backward pre-hook": (
        at("regressor01", lambda m: m.register_full_backward_pre_hook(lambda _m, go: (3 * go[0],))),
        "regressor01 has backward pre hooks",
    ),
    "another activation": (put(RELU, lambda _: nn.GELU()), f"{RELU} is a GELU, not a ReLU"),
    "no activation": (put(RELU, lambda _: nn.Identity()), f"{RELU} is a Identity"),
    "subclass": (put(CONV, lambda _: LoudConv(14, 14, 3, padding=1, bias=False)), f"{CONV} is a LoudConv"),
    "class of a key": (at("key_weight0", lambda m: of_class(m, LoudMLP)), "key_weight0 is a LoudMLP"),
    "forward of an instance": (at(NORM, lambda m: with_forward(m, torch.tanh)), f"{NORM} has its own 'forward'"),
    "forward of a query": (
        at("query_weight0", lambda m: with_forward(m, torch.neg)),
        "query_weight0 has its own 'forward'",
    ),
    "convolution's inner method": (
        at(CONV, lambda m: setattr(m, "_conv_forward", lambda x, w, b: 2 * nn.functional.conv2d(x, w, b, padding=1))),
        f"{CONV} has its own '_conv_forward'",
    ),
    "dilation": (
        at(CONV, lambda m: (setattr(m, "dilation", (2, 2)), setattr(m, "padding", (2, 2)))),
        f"{CONV} has stride=\\(1, 1\\), padding=\\(2, 2\\), dilation=\\(2, 2\\)",
    ),
    "padding mode": (
        put(CONV, lambda _: nn.Conv2d(14, 14, 3, padding=1, bias=False, padding_mode="circular")),
        f"{CONV} has .*padding_mode='circular'",
    ),
    "groups": (put(CONV, lambda _: nn.Conv2d(14, 14, 3, padding=1, bias=False, groups=7)), f"{CONV} has .*groups=7"),
    "kernel": (put(CONV, lambda _: nn.Conv2d(14, 14, 5, padding=2, bias=False)), f"{CONV} has .*padding=\\(2, 2\\)"),
    "bias": (at("regressor01.regressor.6", BIAS), "regressor01.regressor.6 has a bias"),
    "no bias": (put("key_weight0.linear1", lambda _: nn.Linear(8, 4, bias=False)), "key_weight0.linear1 has no bias"),
    "GroupNorm": (put(NORM, lambda _: nn.GroupNorm(2, 14)), f"{NORM} is a GroupNorm"),
    "SyncBatchNorm": (nn.SyncBatchNorm.convert_sync_batchnorm, "regressor00.regressor.1 is a SyncBatchNorm"),
    "not affine": (put(NORM, lambda _: nn.BatchNorm2d(14, affine=False)), f"{NORM} has no weight"),
    "no statistics": (at(NORM, no_statistics), f"{NORM} does not track running statistics"),
    "no counter": (at(NORM, lambda m: setattr(m, "num_batches_tracked", None)), f"{NORM} has no num_batches_tracked"),
    "a BatchNorm in two places": (
        lambda c: layers(c).__setitem__(4, layers(c)[1]),
        "a BatchNorm is part of two projections",
    ),
    "another layer": (at("regressor01.regressor", lambda m: m.append(nn.Tanh())), "regressor01.regressor has 8 layers"),
    "weight beside the parameters": (
        at(CONV, lambda m: (m.__delattr__("weight"), setattr(m, "weight", torch.full((14, 14, 3, 3), 0.1)))),
        f"{CONV} has its own 'weight'",
    ),
    "fewer channels": (narrower, "regressor01.regressor.0.weight is \\[5, 5, 1, 1\\], not \\[14, 5, 1, 1\\]"),
}
# the counter is missing: what training would add to it is torch's to refuse
EVAL_ONLY = {"no counter"}


def outcome(c: nn.Module, run: Callable[..., Tensor]) -> list[Tensor]:
    feat_s, feat_t = CASE.maps()
    loss = run(c, feat_s, feat_t)
    parameters = [p for p in c.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [*feat_s, *parameters], torch.tensor(-1.7))
    return [loss.detach(), *gradients, *(b.clone().float() for b in c.buffers())]


def by_calls(c: nn.Module, feat_s: list[Tensor], feat_t: list[Tensor]) -> Tensor:
    """The same modules called by the attention module's forward, and the loss of what it gives."""
    attention = sk.SelfA(1, 2, 8, CASE.s_n, CASE.t_n)
    attention._modules = c._modules
    attention.train(c.training)
    return sk.SemCKDLoss("reference")(*attention(feat_s, feat_t))


@pytest.fixture(autouse=True)
def no_backend_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMCKD_BACKEND", raising=False)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_modules_are_called(name: str) -> None:
    change, reason = CHANGES[name]
    results, said = [], []
    for run in (lambda c, *maps: c(*maps).loss, by_calls):
        torch.manual_seed(1)
        c = CASE.module(None).train(name not in EVAL_ONLY)
        # what a call before the change has found is not what the one after it finds
        c(*CASE.maps())
        torch.manual_seed(2)
        change(c)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(3)
            results.append(outcome(c, run))
        said += [str(w.message) for w in caught if REASON in str(w.message)]
    assert len(said) == 1
    assert re.search(reason, said[0]), said[0]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pruned convolution", "hook of a layer", "another activation", "SyncBatchNorm"])
def test_a_backend_that_was_asked_for_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, reason = CHANGES[name]
    c = CASE.module("cpu")
    change(c)
    with pytest.raises(RuntimeError, match=f"the backend 'cpu' cannot serve this criterion: {reason}"):
        c(*CASE.maps())
    c.backend = None
    monkeypatch.setenv("SEMCKD_BACKEND", "cpu")
    with pytest.raises(RuntimeError, match=reason):
        c(*CASE.maps())
    c.backend = "reference"
    assert c(*CASE.maps()).loss.isfinite()


def test_it_is_said_once_a_module_and_reason() -> None:
    c, maps = CASE.module(None), CASE.maps()
    hook = layers(c)[2].register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match=REASON):
        c(*maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        c(*maps)
        hook.remove()
        # the kernels serve it again
        contract_is_kept(c)
        prune.l1_unstructured(layers(c)[3], "weight", 0.5)
        with pytest.raises(RuntimeWarning, match="L1Unstructured"):
            c(*maps)
        prune.remove(layers(c)[3], "weight")
        contract_is_kept(c)
        c(*maps)
    other = copy.deepcopy(c)
    layers(other)[2].register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match=REASON):
        other(*maps)


def contract_is_kept(c: nn.Module) -> None:
    assert contract.fault(c) is None


def test_hooks_of_all_modules() -> None:
    calls = []
    for register in (
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
        torch_module.register_module_full_backward_pre_hook,
    ):
        calls.clear()
        handle = register(lambda m, *_: calls.append(type(m)))
        try:
            with pytest.warns(RuntimeWarning, match="every module of this process has a global hook"):
                CASE.module(None)(*CASE.maps()).loss.backward()
        finally:
            handle.remove()
        assert nn.Conv2d in calls


@pytest.mark.parametrize(
    "kind", [nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sequential], ids=lambda k: k.__name__
)
def test_methods_of_classes(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = kind.forward
    c, maps = CASE.module(None), CASE.maps()
    before = copy.deepcopy(c)(*maps).loss
    monkeypatch.setattr(kind, "forward", lambda self, x: 1.5 * forward(self, x), raising=False)
    with pytest.warns(RuntimeWarning, match=f"{kind.__name__}.forward was replaced"):
        after = c(*maps).loss
    assert not torch.allclose(before, after)


def some_settings(c: nn.Module) -> None:
    """What each BatchNorm and parameter may have of its own."""
    for n, norm in enumerate(norms(c)):
        norm.train(n % 2 == 0)
        norm.momentum = (None, 0.3, 0, 1)[n % 4]
        norm.eps = (1e-5, 1e-3, 1, 0.1)[n % 4]
        norm.weight.requires_grad_(n != 1)
    layers(c)[2].inplace = False
    layers(c)[3].weight.requires_grad_(False)
    # functions of the state dict do not compute
    layers(c)[3].register_state_dict_post_hook(lambda *_: None)


def test_settings_that_the_kernels_know() -> None:
    results = []
    for backend in ("cpu", "reference"):
        c = CASE.module(backend, dtype=torch.float64)
        some_settings(c)
        contract_is_kept(c)
        feat_s, feat_t = CASE.maps(dtype=torch.float64)
        loss = c(feat_s, feat_t).loss
        wanted = [*feat_s, *(p for p in c.parameters() if p.requires_grad)]
        results.append([loss, *torch.autograd.grad(loss, wanted), *c.buffers()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_half_precision_embeddings_are_called_too() -> None:
    # similarities of ordinary activations overflow fp16: a layer that is called computes in their type
    c = CASE.module("reference", dtype=torch.float16).eval()
    calls = []
    c.query_weight0.linear1.register_forward_hook(lambda _m, inputs, _o: calls.append(inputs[0].dtype))
    maps = [[(x.detach() * 300).half() for x in side] for side in CASE.maps()]
    expected = copy.deepcopy(c).float()([x.float() for x in maps[0]], [x.float() for x in maps[1]]).weight
    calls.clear()
    torch.testing.assert_close(c(*maps).weight, expected, rtol=1e-3, atol=1e-3)
    assert calls == [torch.float32]
    assert c.query_weight0.linear1.weight.dtype == torch.float16


MISPLACED: dict[str, tuple[Callable[[nn.Module], object], type[Exception], str]] = {
    "projection on meta": (
        lambda c: c.regressor01.to("meta"),
        ValueError,
        "regressor01.regressor.0.weight must be on the device of the maps, cpu, got meta: it was never given values",
    ),
    "query on meta": (lambda c: c.query_weight0.linear2.to("meta"), ValueError, "query_weight0.linear2.weight must be"),
    "key on meta": (lambda c: c.key_weight1.to("meta"), ValueError, "key_weight1.linear1.weight must be on the device"),
    "everything on meta": (lambda c: c.to("meta"), ValueError, "key_weight0.linear1.weight must be on the device"),
    "one statistic on meta": (
        lambda c: setattr(layers(c)[4], "running_var", torch.ones(14, device="meta")),
        ValueError,
        "regressor01.regressor.4.running_var must be on the device of the maps, cpu, got meta",
    ),
    "a changed module on meta": (
        lambda c: (put(NORM, lambda _: nn.GroupNorm(2, 14))(c), layers(c)[4].to("meta")),
        ValueError,
        "regressor01.regressor.4.weight must be on the device",
    ),
    "no memory": (
        lambda c: layers(c)[3].weight.untyped_storage().resize_(0),
        ValueError,
        "regressor01.regressor.3.weight must have its elements in memory, got none",
    ),
    "complex": (
        lambda c: setattr(layers(c)[6], "weight", nn.Parameter(layers(c)[6].weight.detach().cfloat())),
        TypeError,
        "regressor01.regressor.6.weight must be a dense tensor of real numbers, got torch.complex64",
    ),
    "sparse": (
        lambda c: setattr(layers(c)[6], "weight", nn.Parameter(layers(c)[6].weight.detach().to_sparse())),
        TypeError,
        "regressor01.regressor.6.weight must be a dense tensor of real numbers, got torch.sparse_coo",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", MISPLACED)
def test_parameters_that_cannot_compute(name: str) -> None:
    change, error, message = MISPLACED[name]
    for backend in (None, "reference"):
        c = CASE.module(backend)
        change(c)
        with pytest.raises(error, match=message):
            c(*CASE.maps())
    attention = sk.SelfA(1, 2, 8, CASE.s_n, CASE.t_n)
    change(attention)
    with pytest.raises(error, match=message):
        attention(*CASE.maps())


def test_parameters_that_hooks_fetch() -> None:
    """As sharding and offloading do: what a module holds before its hooks have run says nothing."""
    c = CASE.module(None)
    expected = copy.deepcopy(c)(*CASE.maps()).loss
    conv = layers(c)[3]
    value = conv.weight.detach().clone()
    conv.to("meta")
    conv.register_forward_pre_hook(lambda m, _: m._parameters.__setitem__("weight", nn.Parameter(value)))
    with pytest.warns(RuntimeWarning, match=REASON):
        torch.testing.assert_close(c(*CASE.maps()).loss, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("change", "got"),
    [
        # what broadcasts, or leaves a single pixel, would give a loss
        (put("regressor00.regressor.6", lambda _: nn.Conv2d(12, 1, 1, bias=False)), r"\[4, 1, 4, 4\]"),
        (at("regressor00.regressor.3", lambda m: setattr(m, "padding", (0, 0))), r"\[4, 6, 2, 2\]"),
        (at("regressor00", lambda m: m.register_forward_hook(lambda _m, _i, out: out[:1])), r"\[1, 6, 4, 4\]"),
    ],
    ids=["channels", "padding", "batch"],
)
def test_projections_of_another_shape(change: Callable[[nn.Module], None], got: str) -> None:
    for backend in (None, "reference"):
        c = CASE.module(backend)
        change(c)
        with pytest.raises(ValueError, match=rf"pair \(0, 0\) must give \[4, 6, 4, 4\] on cpu, got {got}"):
            c(*CASE.maps())
    attention = sk.SelfA(1, 2, 8, CASE.s_n, CASE.t_n)
    change(attention)
    with pytest.raises(ValueError, match=rf"must give \[4, 6, 4, 4\] on cpu, got {got}"):
        attention(*CASE.maps())


SINGLE = Case([8], [12], [(1, 1)], [(1, 1)], batch=1, batch_size=4)


def test_one_value_a_channel_is_no_matter_for_frozen_norms() -> None:
    c, attention = SINGLE.module(None), sk.SelfA(1, 1, 4, [8], [12])
    attention.load_state_dict(c.state_dict())
    for m in (c, attention):
        for norm in norms(m):
            norm.eval()
    torch.testing.assert_close(c(*SINGLE.maps()).loss, sk.SemCKDLoss()(*attention(*SINGLE.maps())))
    # the module is in eval mode and one of its BatchNorms is not
    for m in (c, attention):
        m.eval()
        norms(m)[1].train()
        with pytest.raises(ValueError, match=r"meet at 1 x 1, .*\(regressor00.regressor.4\)"):
            m(*SINGLE.maps())
    no_statistics(norms(c)[1].eval())
    with pytest.raises(ValueError, match="meet at 1 x 1"):
        c(*SINGLE.maps())
    put("regressor00.regressor.4", lambda _: nn.GroupNorm(2, 24))(c)
    with pytest.warns(RuntimeWarning, match="GroupNorm"):
        assert c(*SINGLE.maps()).loss.isfinite()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_synchronised_norms_on_the_cpu() -> None:
    c = nn.SyncBatchNorm.convert_sync_batchnorm(CASE.module(None))
    with pytest.raises(ValueError, match=r"regressor00.regressor.1 is a SyncBatchNorm, which torch synch"):
        c(*CASE.maps())
    expected = CASE.module("reference").eval()(*CASE.maps()).loss
    torch.testing.assert_close(c.eval()(*CASE.maps()).loss, expected)


@pytest.mark.usefixtures("process_group")
def test_sharded_criteria() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    expected = CASE.module(None)(*CASE.maps()).loss
    whole = fully_shard(CASE.module("cpu"), mesh=mesh)
    torch.testing.assert_close(whole(*CASE.maps()).loss, expected)
    for part in ("regressor01", "regressor01.regressor.3", "query_weight0", "key_weight0.linear1"):
        pieces = CASE.module(None)
        fully_shard(pieces.get_submodule(part), mesh=mesh)
        with pytest.warns(RuntimeWarning, match=f"{part} is a FSDP"):
            torch.testing.assert_close(pieces(*CASE.maps()).loss, expected)
    # nobody gathers these
    sharded = CASE.module(None)
    conv = layers(sharded)[3]
    conv.weight = nn.Parameter(distribute_tensor(conv.weight.detach(), mesh, [Shard(0)]))
    with (
        pytest.warns(RuntimeWarning, match="DTensor"),
        pytest.raises(TypeError, match=r"regressor01.regressor.3.weight must be a whole tensor, got DTensor: shard"),
    ):
        sharded(*CASE.maps())
    feat_s, feat_t = CASE.maps()
    with pytest.raises(TypeError, match=r"feat_s\[0\] must be a whole, plain tensor, got DTensor"):
        CASE.module(None)([distribute_tensor(feat_s[0].detach(), mesh, [Replicate()])], feat_t)


def test_compiled() -> None:
    c = CASE.module(None)
    put(RELU, lambda _: nn.GELU())(c)
    expected = copy.deepcopy(c)
    torch.compiler.reset()
    with pytest.warns(RuntimeWarning, match=f"{RELU} is a GELU"):
        got = torch.compile(c, fullgraph=True, backend="eager")(*CASE.maps()).loss
    torch.testing.assert_close(got, by_calls(expected, *CASE.maps()))
    torch.compiler.reset()
