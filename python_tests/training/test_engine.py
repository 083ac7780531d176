"""Training and evaluation of one network, and whether the two SemCKD runs agree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from semckd_kernels import SemCKD, SemCKDOutput
from semckd_kernels.training import engine, experiment
from semckd_kernels.training import samples as data
from semckd_kernels.training.config import Config, Recipe
from semckd_kernels.training.methods import Criterion
from semckd_kernels.training.models import CIFAR_RESNET_LAYERS, FeatureNet, Output, cifar_resnet

# three batches of 32 and a last one of 4
RECIPE = Recipe(epochs=1, batch_size=32)
STUDENT_CHANNELS, TEACHER_CHANNELS = [8, 16, 32], [16, 32, 64]


@pytest.fixture(scope="module")
def samples() -> data.Split:
    images, labels = data.digits().train
    return data.Split(images[:100], labels[:100])


@pytest.fixture(scope="module")
def teacher() -> FeatureNet:
    torch.manual_seed(1)
    return FeatureNet(cifar_resnet(8, 16, 10, 1), CIFAR_RESNET_LAYERS)


class Counting(nn.Module):
    """A criterion that notes the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = Criterion()
        self.sizes: list[int] = []

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> object:
        self.sizes.append(len(labels))
        return self.criterion(student, teacher, labels)


class WrongGradient(SemCKD):
    """A criterion of the right value whose gradient is 1% too large."""

    def forward(self, *args: object) -> SemCKDOutput:
        output = super().forward(*args)
        return output._replace(loss=output.loss + 0.01 * (output.loss - output.loss.detach()))


def student() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(cifar_resnet(8, 8, 10, 1), CIFAR_RESNET_LAYERS)


def semckd_losses(
    samples: data.Split, teacher: FeatureNet, backend: str | None, wrong: bool = False
) -> tuple[list[float], SemCKD]:
    net = student()
    kind = WrongGradient if wrong else SemCKD
    term = kind(RECIPE.batch_size, STUDENT_CHANNELS, TEACHER_CHANNELS, backend=backend)
    criterion = Criterion(1.0, 1.0, 4.0, Config().beta, term)
    return engine.train(net, criterion, samples, RECIPE, teacher=teacher).losses, term


def test_learning_rate() -> None:
    factors = [engine.learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert max(factors) == factors[9] > 0.97
    assert engine.learning_rate_factor(0, 1) == 1.0


def test_every_sample_is_used_the_last_smaller_batch_too(samples: data.Split) -> None:
    counting = Counting()
    history = engine.train(student(), counting, samples, Recipe(epochs=2, batch_size=32))
    assert counting.sizes == [32, 32, 32, 4] * 2
    assert len(history.losses) == len(history.step_ms) == 8


def test_training_learns(samples: data.Split) -> None:
    net = student()
    history = engine.train(net, Criterion(), samples, Recipe(epochs=40, batch_size=25))
    assert history.losses[0] > 2
    assert history.losses[-1] < 0.5
    assert engine.evaluate(net, samples, 32) > 0.9


def test_evaluate_counts_hits(samples: data.Split) -> None:
    net = student().eval()
    right = (net(samples.images).logits.argmax(1) == samples.labels).sum().item()
    assert engine.evaluate(net.train(), samples, 32) == pytest.approx(right / 100)
    assert not net.training


def test_median_leaves_the_first_steps_out() -> None:
    assert engine.History([], [900.0] * engine.UNTIMED_STEPS + [1.0, 2.0, 30.0]).median_step_ms() == 2.0
    assert engine.History([], [4.0, 6.0]).median_step_ms() == 5.0


def test_everything_trains_but_the_teacher(samples: data.Split, teacher: FeatureNet) -> None:
    before_teacher = copy.deepcopy(teacher.state_dict())
    net = student()
    term = SemCKD(RECIPE.batch_size, STUDENT_CHANNELS, TEACHER_CHANNELS)
    before = {name: p.clone() for name, p in [*net.named_parameters(), *term.named_parameters()]}
    engine.train(net, Criterion(1.0, 1.0, 4.0, 50.0, term), samples, RECIPE, teacher=teacher)
    after = dict([*net.named_parameters(), *term.named_parameters()])
    assert [name for name, p in after.items() if torch.equal(p, before[name])] == []
    # running statistics included
    assert all(torch.equal(value, before_teacher[name]) for name, value in teacher.state_dict().items())


def test_runs_of_one_seed_are_equal_bit_for_bit(samples: data.Split, teacher: FeatureNet) -> None:
    first, second = (semckd_losses(samples, teacher, None) for _ in range(2))
    assert first[0] == second[0]
    for name, value in first[1].state_dict().items():
        assert torch.equal(value, second[1].state_dict()[name]), name


def test_our_loss_trains_as_the_reference_does(samples: data.Split, teacher: FeatureNet) -> None:
    ours, _ = semckd_losses(samples, teacher, None)
    reference, _ = semckd_losses(samples, teacher, "reference")
    agreement = experiment.compare(ours, reference)
    assert len(ours) == 4
    assert agreement.holds, agreement


def test_a_gradient_wrong_by_one_percent_is_found(samples: data.Split, teacher: FeatureNet) -> None:
    wrong, _ = semckd_losses(samples, teacher, None, wrong=True)
    reference, _ = semckd_losses(samples, teacher, "reference")
    agreement = experiment.compare(wrong, reference)
    assert wrong[0] == pytest.approx(reference[0], rel=1e-6)
    assert not agreement.holds, agreement


def test_compare_by_hand() -> None:
    agreement = experiment.compare([1.0, 2.0, 4.0], [1.0, 2.0 - 1e-5, 3.0])
    assert agreement.first_steps == pytest.approx(5e-6)
    assert agreement.all_steps == pytest.approx(0.25)
    assert agreement.holds
    assert not experiment.compare([1.0, float("nan")], [1.0, 1.0]).holds


def test_loss_that_is_not_finite_stops_with_its_step_and_terms(samples: data.Split) -> None:
    broken = data.Split(samples.images.clone(), samples.labels)
    broken.images[:] = float("nan")
    with pytest.raises(engine.TrainingError, match=r"'KD' is nan at step 1 of 4 \(ce nan\)"):
        engine.train(student(), Criterion(), broken, RECIPE, title="KD")


def test_mean_attention_is_the_mean_over_samples(samples: data.Split, teacher: FeatureNet) -> None:
    net = student()
    torch.manual_seed(2)
    term = SemCKD(32, STUDENT_CHANNELS, TEACHER_CHANNELS)
    attention = experiment.mean_attention(net, teacher, term, samples, 32)
    with torch.no_grad():
        weights = [
            term(net(images).maps, teacher(images).maps).weight.double() for images, _ in data.batches(samples, 32)
        ]
    torch.testing.assert_close(attention.weight, torch.cat(weights).mean(0))
    torch.testing.assert_close(attention.weight.sum(1), torch.ones(3, dtype=torch.float64))
    assert attention.samples == 100
    assert attention.student_layers == ["layer1 (8 x 16 x 16)", "layer2 (16 x 8 x 8)", "layer3 (32 x 4 x 4)"]
    assert attention.teacher_layers[0] == "layer1 (16 x 16 x 16)"
