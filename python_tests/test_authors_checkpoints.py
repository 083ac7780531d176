"""State dicts, creation order and random start of the authors' two code bases."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import semckd_kernels as sk

S_N, T_N, BATCH = [6, 10], [4, 8, 12], 12


def make_module() -> sk.SelfA:
    torch.manual_seed(1)
    return sk.SelfA(2, 3, BATCH, S_N, T_N)


def toolbox_keys(s_len: int = 2, t_len: int = 3) -> list[str]:
    """As the toolbox's module holds them: what is unused is the MLPs' own, the projections are as they always were."""
    keys = []
    for kind, count in (("query", s_len), ("key", t_len)):
        for n in range(count):
            for layer in ("linear1", "linear2", "regressor.0", "regressor.3"):
                keys += [f"{kind}_{n}.{layer}.weight", f"{kind}_{n}.{layer}.bias"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = {0: ("weight",), 1: norm, 3: ("weight",), 4: norm, 6: ("weight",)}
    for i in range(s_len):
        for j in range(t_len):
            keys += [f"regressor{i}{j}.regressor.{n}.{name}" for n, names in layers.items() for name in names]
    return keys


class ToolboxMLP(nn.Module):
    """The tensors of the toolbox's query and key MLP."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim_in, 2 * dim_out)
        self.linear2 = nn.Linear(2 * dim_out, dim_out)
        self.regressor = nn.Sequential(
            nn.Linear(dim_in, 2 * dim_out), nn.Identity(), nn.ReLU(), nn.Linear(2 * dim_out, dim_out), nn.Identity()
        )


def convolutions(c: int, t: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, 2 * t, 1, bias=False),
        nn.BatchNorm2d(2 * t),
        nn.ReLU(),
        nn.Conv2d(2 * t, 2 * t, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * t),
        nn.ReLU(),
        nn.Conv2d(2 * t, t, 1, bias=False),
    )


def toolbox_module() -> nn.Module:
    module = nn.Module()
    for i in range(len(S_N)):
        module.add_module(f"query_{i}", ToolboxMLP(BATCH, BATCH // 4))
    for j in range(len(T_N)):
        module.add_module(f"key_{j}", ToolboxMLP(BATCH, BATCH // 4))
    for i, c in enumerate(S_N):
        for j, t in enumerate(T_N):
            module.add_module(f"regressor{i}{j}", nn.ModuleDict({"regressor": convolutions(c, t)}))
    for p in module.parameters():
        nn.init.normal_(p)
    return module


def renamed(key: str) -> str:
    return key.replace("query_", "query_weight").replace("key_", "key_weight")


@pytest.mark.parametrize("prefix", ["", "criterion."])
def test_the_toolboxs_checkpoints_load_strictly(prefix: str) -> None:
    state = toolbox_module().state_dict()
    assert sorted(state) == sorted(toolbox_keys())
    state = OrderedDict((prefix + key, value) for key, value in state.items())
    before = dict(state)
    for target in (sk.SelfA(2, 3, BATCH, S_N, T_N), sk.SemCKD(BATCH, S_N, T_N)):
        owner = nn.ModuleDict({"criterion": target}) if prefix else target
        assert str(owner.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
        assert state == before
        own = target.state_dict()
        for key in toolbox_keys():
            if not key.startswith(("query_", "key_")) or ".linear" in key:
                assert torch.equal(own.pop(renamed(key)), state[prefix + key]), key
        assert not own


def test_the_toolboxs_form_is_written() -> None:
    source = make_module()
    state = source.toolbox_state_dict()
    assert sorted(state) == sorted(toolbox_keys())
    target = toolbox_module()
    assert str(target.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    for key, value in target.state_dict().items():
        if ".regressor." in key and not key.startswith("regressor"):
            assert not value.any(), key
        else:
            assert torch.equal(value, source.state_dict()[renamed(key)]), key
    back = sk.SemCKD(BATCH, S_N, T_N)
    back.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), source.state_dict().values(), strict=True))
    # half precision stays half
    assert {v.dtype for v in source.half().toolbox_state_dict().values()} == {torch.float16, torch.int64}


def test_the_toolboxs_form_of_many_layers() -> None:
    module = sk.SemCKD(4, [1] * 12, [1] * 12)
    with pytest.raises(ValueError, match=r"must have a name for each pair, got 12 x 12 layers.*: use state_dict\(\)"):
        module.toolbox_state_dict()
    assert len(sk.SemCKD(4, [1] * 2, [1] * 13).toolbox_state_dict()) == len(toolbox_keys(2, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"query_0.regressor.6.weight": torch.zeros(1)}), "Unexpected key.*regressor.6"),
        (lambda s: s.update({"query_2.linear1.weight": torch.zeros(1)}), 'Unexpected key.*"query_2.linear1.weight"'),
        (lambda s: s.update({"regressor00.regressor.7.weight": torch.zeros(1)}), "Unexpected key.*regressor.7"),
        (lambda s: s.update({"query_0.linear3.weight": torch.zeros(1)}), "Unexpected key.*linear3"),
        (lambda s: s.pop("key_2.linear1.bias"), 'Missing key.*"key_weight2.linear1.bias"'),
        (lambda s: s.pop("regressor01.regressor.4.running_var"), "Missing key.*regressor01.regressor.4.running_var"),
        (lambda s: s.update({"key_0.linear1.bias": torch.zeros(3)}), "size mismatch for key_weight0.linear1.bias"),
    ],
    ids=["layer of an MLP", "another query", "layer of a projection", "linear", "no bias", "no statistics", "shape"],
)
def test_other_checkpoints_are_refused(change, message: str) -> None:
    state = toolbox_module().state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=message):
        make_module().load_state_dict(state)


def official_start(seed: int) -> list[tuple[str, Tensor]]:
    """Parameters as the official module creates them after a seed: keys, queries, projections row by row."""
    torch.manual_seed(seed)
    dim = BATCH // 4
    found: list[tuple[str, Tensor]] = []

    def add(name: str, module: nn.Module) -> None:
        found.extend((f"{name}.{key}", p.detach()) for key, p in module.named_parameters())

    for kind, count in (("key_weight", len(T_N)), ("query_weight", len(S_N))):
        for n in range(count):
            add(f"{kind}{n}.linear1", nn.Linear(BATCH, 2 * dim))
            add(f"{kind}{n}.linear2", nn.Linear(2 * dim, dim))
    for i, c in enumerate(S_N):
        for j, t in enumerate(T_N):
            add(f"regressor{i}{j}.regressor", convolutions(c, t))
    return found


@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_and_the_random_start_are_the_official_ones(seed: int) -> None:
    expected = official_start(seed)
    for make in (
        lambda: sk.SelfA(2, 3, BATCH, S_N, T_N),
        lambda: sk.SelfA(BATCH, S_N, T_N, 1.0),
        lambda: sk.SemCKD(BATCH, S_N, T_N),
    ):
        torch.manual_seed(seed)
        parameters = list(make().named_parameters())
        assert [name for name, _ in parameters] == [name for name, _ in expected]
        for (name, value), (_, start) in zip(parameters, expected, strict=True):
            assert torch.equal(value, start), name
        # and what is drawn next
        after = torch.rand(1)
        official_start(seed)
        assert torch.equal(after, torch.rand(1))


def test_an_optimizers_state_of_the_official_code_means_the_same() -> None:
    """It goes by position: of a criterion in another order queries would get the keys' momentum."""
    expected = official_start(0)
    official = [nn.Parameter(value) for _, value in expected]
    optimizer = torch.optim.SGD(official, lr=0.1, momentum=0.9)
    for n, p in enumerate(official):
        p.grad = torch.full_like(p, float(n))
    optimizer.step()
    module = make_module()
    ours = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    ours.load_state_dict(optimizer.state_dict())
    for n, (name, _) in enumerate(expected):
        parameter = module.get_parameter(name)
        assert torch.equal(ours.state[parameter]["momentum_buffer"], torch.full_like(parameter, float(n))), name
