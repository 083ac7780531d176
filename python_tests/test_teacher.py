"""The prepared teacher: equal to the teacher layer by layer, whatever its modules do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor, nn

import semckd_kernels as sk
from semckd_kernels.features import LOST
from semckd_kernels.teacher import FrozenConv2d
from semckd_kernels.teacher.convolution import FoldedNorm

# channels enough for the kernels of the CPU
WIDTH = 32
IMAGES = torch.randn(2, WIDTH, 9, 7, generator=torch.Generator().manual_seed(0))


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, **{"bias": False, **options})


def norm(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(WIDTH, **options)


def trained(net: nn.Module) -> nn.Module:
    """A network whose BatchNorms do something, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for x in (module.weight, module.bias, module.running_mean, module.running_var):
                if x is not None:
                    x.data += 0.5 * torch.rand(WIDTH, generator=generator)
    return net.eval()


class Net(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.own = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


class Block(nn.Module):
    """torchvision's basic block: a ReLU that runs twice, and an addition in place."""

    def __init__(self, shortcut: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu, self.conv2, self.norm2 = (
            conv(),
            norm(),
            nn.ReLU(inplace=True),
            conv(),
            norm(),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), norm()) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            identity = self.shortcut(x)
        out += identity
        return self.relu(out)


class Optional(nn.Module):
    """Whose graph by itself has an addition, where none is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = self.norm(self.conv(x))
        return out if residual is None else F.relu(out + residual)


class AsksForTypes(nn.Module):
    """What is traced is given no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.norm2 = conv(), norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.norm1(out) if isinstance(out, Tensor) else self.norm2(out)


class Case(NamedTuple):
    """A network, and how many BatchNorms, ReLUs and additions become part of its convolutions."""

    make: Callable[[], nn.Module]
    norms: int = 0
    relus: int = 0
    additions: int = 0


def shared_weight() -> nn.Module:
    net = Net(lambda m, x: m.conv2(m.norm(m.conv1(x))), conv1=conv(), norm=norm(), conv2=conv())
    net.conv2.weight = net.conv1.weight
    return net


def behind_an_alias() -> nn.Module:
    """The same modules under two names, of which the second one is called."""
    net = Net(lambda m, x: m.stem(x), conv1=conv(), norm1=norm())
    net.stem = nn.Sequential(net.conv1, net.norm1, nn.ReLU())
    return net


def with_parameter() -> nn.Module:
    """A changed forward pass would hold on to the parameter that it has now."""
    net = Net(lambda m, x: F.relu(m.norm(m.conv(x)) + x) * m.gain, conv=conv(), norm=norm())
    net.gain = nn.Parameter(torch.tensor(0.5))
    return net


def writes_between(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    x = F.relu_(x)
    return F.relu(y + x)


CASES = {
    "sequential": Case(lambda: nn.Sequential(conv(bias=True), norm(), nn.ReLU(inplace=True)), 1, 1),
    "without affine": Case(lambda: nn.Sequential(conv(), norm(affine=False)), 1),
    "statistics of the batch": Case(lambda: nn.Sequential(conv(), norm(track_running_stats=False), nn.ReLU())),
    "no norm": Case(lambda: nn.Sequential(conv(bias=True), nn.ReLU(), conv(), nn.Identity()), 0, 1),
    "strided": Case(lambda: nn.Sequential(conv(stride=2), norm(), nn.ReLU()), 1, 1),
    "grouped": Case(lambda: nn.Sequential(conv(groups=4, padding_mode="reflect"), norm(), nn.ReLU()), 1, 1),
    "nothing between": Case(lambda: nn.Sequential(conv(), nn.Dropout(0.5), norm(), nn.Identity(), nn.ReLU()), 1, 1),
    "another activation": Case(lambda: nn.Sequential(conv(), norm(), nn.ReLU6(), nn.ReLU()), 1),
    "block": Case(lambda: nn.Sequential(Block(), Block(shortcut=True)), 5, 4, 2),
    "norm first": Case(
        lambda: Net(lambda m, x: m.conv(m.relu(m.norm(x))) + x, conv=conv(), norm=norm(), relu=nn.ReLU()), 0, 0, 1
    ),
    "functional relu": Case(
        lambda: Net(lambda m, x: F.relu(m.norm(m.conv(x)), inplace=True), conv=conv(), norm=norm()), 1, 1
    ),
    "method relu": Case(lambda: Net(lambda m, x: m.norm(m.conv(x)).relu(), conv=conv(), norm=norm()), 1, 1),
    "a relu that others use": Case(
        lambda: Net(
            lambda m, x: m.relu(m.norm(m.conv(m.relu(x))) + x), conv=conv(), norm=norm(), relu=nn.ReLU(inplace=False)
        ),
        1,
        1,
        1,
    ),
    "two users of the convolution": Case(
        lambda: Net(lambda m, x: F.relu((y := m.conv(x)) + m.norm(y)), conv=conv(), norm=norm())
    ),
    "two users of the norm": Case(
        lambda: Net(lambda m, x: F.relu(y := m.norm(m.conv(x))) + y, conv=conv(), norm=norm()), 1
    ),
    "convolution used twice": Case(
        lambda: Net(lambda m, x: m.norm(m.conv(F.relu(m.conv(x)))), conv=conv(), norm=norm())
    ),
    "norm used twice": Case(
        lambda: Net(lambda m, x: m.norm(m.conv1(x)) + m.norm(m.conv2(x)), conv1=conv(), conv2=conv(), norm=norm())
    ),
    "shared weight": Case(shared_weight, 1),
    "weight read elsewhere": Case(
        lambda: Net(lambda m, x: m.norm(m.conv(x)) + m.conv.weight.mean(), conv=conv(), norm=norm())
    ),
    "alias": Case(behind_an_alias, 1, 1),
    "parameter": Case(with_parameter, 1),
    "written to between": Case(lambda: Net(writes_between, conv=conv(), norm=norm()), 1),
    "written to what is added": Case(
        lambda: Net(lambda m, x: x.add_(m.norm(m.conv(x))) + x, conv=conv(), norm=norm()), 1
    ),
    "optional argument": Case(lambda: nn.Sequential(Optional(), nn.ReLU()), 1),
    "asks for types": Case(lambda: nn.Sequential(AsksForTypes(), nn.ReLU())),
    "broadcast": Case(
        lambda: Net(lambda m, x: F.relu(m.norm(m.conv(x)) + x.mean((2, 3), keepdim=True)), conv=conv(), norm=norm()),
        1,
        1,
        1,
    ),
    "scaled addition": Case(
        lambda: Net(lambda m, x: torch.add(m.norm(m.conv(x)), x, alpha=2), conv=conv(), norm=norm()), 1
    ),
    "both sides": Case(
        lambda: Net(
            lambda m, x: F.relu(m.norm1(m.conv1(x)) + m.norm2(m.conv2(x))),
            conv1=conv(),
            norm1=norm(),
            conv2=conv(),
            norm2=norm(),
        ),
        2,
        1,
        1,
    ),
    "doubled": Case(lambda: Net(lambda m, x: (y := m.norm(m.conv(x))) + y, conv=conv(), norm=norm()), 1),
}


def outputs(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What every module gives that runs once, and whose output is still its own, copied before anybody writes to it."""
    found: dict[str, list[Tensor]] = {}

    def look(name: str) -> Any:
        return lambda module, args, output: found.setdefault(name, []).append(output.clone())

    hooks = [
        m.register_forward_hook(look(name)) for name, m in net.named_modules() if "output" not in getattr(m, LOST, ())
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return {name: given[0] for name, given in found.items() if len(given) == 1}


def additions(net: nn.Module) -> int:
    """Calls of a convolution with something to add."""
    found = []
    hooks = [
        m.register_forward_pre_hook(lambda m, args: found.append(len(args) == 2))
        for m in net.modules()
        if isinstance(m, FrozenConv2d)
    ]
    net(IMAGES.clone())
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("name", CASES)
def test_every_layer_gives_what_it_gave(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(2)
    net = trained(case.make())
    exact = outputs(copy.deepcopy(net).double(), IMAGES.double())
    eager = outputs(net, IMAGES.clone())
    before = {name: x.clone() for name, x in net.state_dict().items()}
    prepared = sk.prepare_teacher(net)
    found = outputs(prepared, IMAGES.clone())
    for layer, value in found.items():
        if layer in exact:
            assert_close(value, eager[layer], exact[layer], f"output of '{layer}'")
    assert "" in found
    counted = sum(type(m) is FoldedNorm for m in prepared.modules())
    assert counted == case.norms
    assert sum(m.relu for m in prepared.modules() if isinstance(m, FrozenConv2d)) == case.relus
    assert additions(prepared) == case.additions
    # the original is as it was, and names are the same
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())
    assert not any(isinstance(m, FrozenConv2d) for m in net.modules())
    assert [name for name, _ in prepared.named_modules()] == [name for name, _ in net.named_modules()]
    # nothing is left to do
    again = sk.prepare_teacher(prepared)
    torch.testing.assert_close(again(IMAGES.clone()), prepared(IMAGES.clone()), rtol=0, atol=0)


def test_layers_that_are_asked_for_stay() -> None:
    net = trained(nn.Sequential(conv(), norm(), nn.ReLU(), Block()))
    layers = ["0", "1", "2", "3.norm1", "3.conv2"]
    with torch.no_grad(), sk.FeatureMaps(net, ["0", "1", "3.conv2"]) as features:
        # the block's ReLU writes to what its norm1 gives
        net(IMAGES)
        expected = features.take()
    for asked in (layers, ["0"], ["1"], ["2"], ["3.conv2"]):
        prepared = sk.prepare_teacher(net, asked)
        kept = [name for name in ("0", "1", "3.conv2") if name in asked]
        if kept:
            with torch.no_grad(), sk.FeatureMaps(prepared, kept) as features:
                prepared(IMAGES)
                for name, value in zip(kept, features.take(), strict=True):
                    torch.testing.assert_close(value, expected[["0", "1", "3.conv2"].index(name)])
    prepared = sk.prepare_teacher(net, ["2", "3"])
    sk.FeatureMaps(prepared, ["2", "3"]).close()
    with pytest.raises(ValueError, match="the output of '1' became part of a convolution: name '1' to prepare_teacher"):
        sk.FeatureMaps(prepared, ["1"])
    with pytest.raises(ValueError, match="the input of '2' became part"):
        sk.FeatureMaps(prepared, ["2"], inputs=True)
    prepared = sk.prepare_teacher(net, ["2"], inputs=True)
    with torch.no_grad(), sk.FeatureMaps(prepared, ["2"], inputs=True) as features:
        prepared(IMAGES)
        torch.testing.assert_close(features.take()[0], expected[1])
    with pytest.raises(ValueError, match=r"the network has no module '3\.norm9'; the nearest are 3\.norm"):
        sk.prepare_teacher(net, ["3.norm9"])


def test_modules_with_hooks_stay_and_hooks_go_on() -> None:
    net = trained(nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm(), nn.ReLU()))
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    features = sk.FeatureMaps(net, ["5"])
    # of a copy, hooks that do nothing stand in nobody's way
    assert type(sk.prepare_teacher(net, ["5"])[5]) is nn.Identity
    prepared = sk.prepare_teacher(net, ["5"], inplace=True)
    assert prepared is net
    assert [type(m) for m in net] == [FrozenConv2d, nn.BatchNorm2d, nn.ReLU, FrozenConv2d, FoldedNorm, nn.ReLU]
    with torch.no_grad():
        net(IMAGES)
    assert len(seen) == 1
    assert features.take()[0].min() == 0


def test_a_network_that_cannot_be_traced_keeps_its_norms() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) if x.sum() > 0 else x

    net = trained(Net(forward, conv=conv(), norm=norm()))
    with pytest.warns(UserWarning, match=r"of Net stay as they are, since torch.fx cannot trace it \(TraceError: "):
        prepared = sk.prepare_teacher(net, dtype=torch.float64)
    assert type(prepared.norm) is nn.BatchNorm2d
    assert prepared(IMAGES.abs()).dtype == torch.float64
    assert not any(p.requires_grad for p in prepared.parameters())


def test_optional_arguments_are_no_constants() -> None:
    with pytest.warns(UserWarning, match=r"of Optional stay .* \(its forward pass has optional arguments\)"):
        assert type(sk.prepare_teacher(Optional()).norm) is nn.BatchNorm2d


def test_state_dicts_are_not_mixed_up() -> None:
    net = trained(nn.Sequential(conv(), norm(), nn.ReLU()))
    prepared: Any = sk.prepare_teacher(net)
    other = sk.prepare_teacher(trained(nn.Sequential(conv(), norm(), nn.ReLU())))
    assert list(prepared.state_dict()) == ["0.weight", "0.bias"]
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"'1\.weight' is folded into a convolution: load weights before"):
            prepared.load_state_dict(net.state_dict(), strict=strict)
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(other(IMAGES), prepared(IMAGES))
    # weights that are written to are transformed again
    with torch.no_grad():
        prepared[0].weight.mul_(2)
        prepared[0].bias.mul_(2)
    torch.testing.assert_close(prepared(IMAGES), 2 * other(IMAGES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types(dtype: torch.dtype) -> None:
    net = trained(nn.Sequential(Block(), Block(shortcut=True)))
    exact = copy.deepcopy(net).double()(IMAGES.double()).detach()
    cast = copy.deepcopy(net).to(dtype)(IMAGES.to(dtype)).detach()
    # inputs are cast
    assert_close(sk.prepare_teacher(net, dtype=dtype)(IMAGES), cast, exact, "output")
    if dtype != torch.float64:
        # which would be moved too late
        assert_close(sk.prepare_teacher(net).to(dtype)(IMAGES.to(dtype)), cast, exact, "moved")
    if dtype == torch.bfloat16:
        with torch.autocast("cpu"):
            assert_close(sk.prepare_teacher(net)(IMAGES), net(IMAGES), exact, "autocast")


def test_inputs_get_their_gradients() -> None:
    net = trained(nn.Sequential(Block(), Block(shortcut=True)))
    gradients = []
    for each in (net, sk.prepare_teacher(net)):
        x = IMAGES.clone().requires_grad_()
        each(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_layout() -> None:
    net = trained(Block(shortcut=True))
    for choice, expected in ((None, True), (True, True), (False, False)):
        prepared: Any = sk.prepare_teacher(net, channels_last=choice)
        assert prepared.conv1.weight.is_contiguous(memory_format=torch.channels_last) == expected
        torch.testing.assert_close(prepared(IMAGES), net(IMAGES))


def test_copies_and_compiled_code() -> None:
    net = trained(nn.Sequential(Block(), Block(shortcut=True)))
    prepared = sk.prepare_teacher(net, compile={"backend": "eager", "fullgraph": True})
    plain = sk.prepare_teacher(net)
    with torch.no_grad():
        expected = plain(IMAGES)
        assert torch.equal(prepared(IMAGES), expected)
        for other in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
            other[0].conv1.weight.zero_()
            other[0].conv2.weight.zero_()
            assert not torch.equal(other(IMAGES), expected)
            assert torch.equal(plain(IMAGES), expected)


def test_what_is_no_network() -> None:
    with pytest.raises(TypeError, match="net must be a module, got int"):
        sk.prepare_teacher(3)
    with pytest.raises(TypeError, match=r"dtype must be a floating type, got torch.int8"):
        sk.prepare_teacher(conv(), dtype=torch.int8)


def test_in_a_distiller() -> None:
    """With its layers kept, and the caller's own teacher as it was."""

    class Net3(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(conv(), norm(), nn.ReLU(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    torch.manual_seed(0)
    student, teacher = trained(Net3()), trained(Net3())
    layers = {"student_layers": ["2", "3"], "teacher_layers": ["1", "3"]}
    losses = []
    for choice in (False, True, {"dtype": torch.bfloat16}):
        torch.manual_seed(1)
        module = sk.Distiller.from_example(
            copy.deepcopy(student), teacher, IMAGES, batch_size=2, prepare_teacher=choice, **layers
        )
        losses.append(module(IMAGES, labels=torch.tensor([0, 3])).loss)
        losses[-1].backward()
        assert any(isinstance(m, FrozenConv2d) for m in module.teacher.modules()) == bool(choice)
        assert type(teacher[1]) is nn.BatchNorm2d
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0], rtol=0.03, atol=0)
    with pytest.raises(ValueError, match="layers: the network has no module '9'"):
        sk.Distiller(student, teacher, None, teacher_layers=["9"], prepare_teacher=True)
