"""Two gloo processes train as one does: each has half of a batch, and their gradients are averaged."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

EXAMPLES = Path(__file__).parents[2] / "examples"
# what torchrun tells a process, beside its rank
ENVIRONMENT = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "test"}
STEPS = 2
# of Lightning's Trainer
SHORT_AND_SILENT = {"accelerator": "cpu", "limit_train_batches": STEPS, "limit_val_batches": 1, "logger": False}
SHORT_AND_SILENT |= dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


def of_timm(halves: list[int], distributed: bool) -> dict[str, Tensor]:
    from test_timm import IMAGES, LABELS, task

    module = task()
    if distributed:
        module.prepare_distributed()
    losses = [module(IMAGES[2 * n : 2 * n + 2], LABELS[2 * n : 2 * n + 2])["loss"] for n in halves]
    return gradients(module.trainable_module, losses)


def of_torchdistill(halves: list[int], distributed: bool) -> dict[str, Tensor]:
    from test_torchdistill import BATCH, box

    made = box(distributed=distributed)
    losses = [made.forward_process(*(x[4 * n : 4 * n + 4] for x in BATCH)) for n in halves]
    return gradients(made.student_model, losses)


def gradients(net: nn.Module, losses: list[Tensor]) -> dict[str, Tensor]:
    (sum(losses[1:], losses[0]) / len(losses)).backward()
    return {name.replace("module.", ""): p.grad for name, p in net.named_parameters() if p.grad is not None}


def of_lightning(halves: list[int], distributed: bool) -> dict[str, Tensor]:
    """The averaged parameters; those of one process come from a plain loop."""
    example = importlib.import_module("lightning_module")
    if distributed:
        module = example.main("student.pt", max_epochs=1, devices=2, strategy="ddp", **SHORT_AND_SILENT)
        return dict(module.distiller.named_parameters())
    example.lightning.seed_everything(0)
    module = example.Distilled()
    net: nn.Module = module.distiller
    optimizer = module.configure_optimizers()
    data = example.digits()
    # as Lightning gives data to its processes
    samplers = [DistributedSampler(data, 2, n, shuffle=True, seed=0) for n in halves]
    average: list[Tensor] = []
    for batches in islice(zip(*(DataLoader(data, 64, sampler=x) for x in samplers), strict=True), STEPS):
        optimizer.zero_grad()
        gradients(net, [net(images, labels=labels).loss for images, labels in batches])
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        parameters = [p.detach().clone() for p in net.parameters()]
        average = torch._foreach_lerp(average, parameters, 0.01) if average else parameters
    return dict(zip((name for name, _ in net.named_parameters()), average, strict=True))


def of_accelerate(halves: list[int], distributed: bool) -> dict[str, Tensor]:
    """The student's parameters after STEPS steps of two batches each: two of one process, one of each of two."""
    from accelerate.utils import DataLoaderConfiguration

    count = len(halves)
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    options = {"gradient_accumulation_steps": count, "cpu": True, "dataloader_config": order}
    importlib.import_module("accelerate_loop").train("accelerate.pt", STEPS * count, **options)
    return student("accelerate.pt", distributed)


def of_transformers(halves: list[int], distributed: bool) -> dict[str, Tensor]:
    options = {"gradient_accumulation_steps": len(halves), "use_cpu": True, "disable_tqdm": True}
    example = importlib.import_module("transformers_trainer")
    model = example.train("vit", STEPS, save_strategy="no", dataloader_pin_memory=False, **options)
    if distributed:
        dist.barrier()
    again = example.ViTForImageClassification.from_pretrained("vit").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.distiller.student.state_dict().items())
    return dict(model.distiller.named_parameters())


def student(path: str, distributed: bool) -> dict[str, Tensor]:
    if distributed:
        dist.barrier()
    net = importlib.import_module("shared").Net(8)
    net.load_state_dict(torch.load(path))
    return dict(net.named_parameters())


OF: dict[str, Callable[[list[int], bool], dict[str, Tensor]]] = {
    "timm": of_timm,
    "torchdistill": of_torchdistill,
    "lightning": of_lightning,
    "accelerate": of_accelerate,
    "transformers": of_transformers,
}
NEEDS = {"torchdistill": ["torchdistill", "sklearn"], "lightning": ["lightning", "sklearn"]}
NEEDS |= {"accelerate": ["accelerate", "sklearn"], "transformers": ["transformers", "accelerate", "sklearn"]}


def missing(library: str) -> list[str]:
    return [name for name in NEEDS.get(library, [library]) if importlib.util.find_spec(name) is None]


LIBRARIES = [library for library in OF if not missing(library) and EXAMPLES.exists()]


@contextlib.contextmanager
def working_in(folder: Path, **variables: str) -> Iterator[None]:
    """Example files and what they write, found; afterwards everything is as before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for path in (Path(__file__).parent, EXAMPLES):
            patch.syspath_prepend(str(path))
        # the last two are Lightning's, which sets them: they are undone
        for name, value in (variables | {"PL_GLOBAL_SEED": "0", "PL_SEED_WORKERS": "0"}).items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            if "accelerate" in sys.modules:
                # its objects of one process know of the other
                state = importlib.import_module("accelerate.state")
                state.AcceleratorState._reset_state(True)
                state.GradientState._reset_state()


def train(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with working_in(folder, RANK=str(rank), LOCAL_RANK=str(rank), **ENVIRONMENT):
        found = {library: OF[library]([rank], True) for library in LIBRARIES}
    torch.save({library: {k: v.detach() for k, v in of.items()} for library, of in found.items()}, folder / f"{rank}")
    dist.destroy_process_group()


def second(index: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        train(1, folder)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    # this process is the first: a second interpreter takes longer to start than everything here to run
    other: Any = mp.start_processes(second, (folder,), nprocs=1, join=False, start_method="spawn")
    train(0, folder)
    while not other.join():
        pass
    return [torch.load(folder / f"{rank}") for rank in range(2)]


# each library's plug-in in one process: the files beside this one
@pytest.mark.slow
@pytest.mark.parametrize("library", OF)
def test_two_processes_are_one(library: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if library not in LIBRARIES:
        pytest.skip(f"{', '.join(missing(library)) or 'the folder examples'} is not there")
    of_two: list[dict[str, dict[str, Tensor]]] = request.getfixturevalue("of_two")
    with working_in(tmp_path):
        expected = OF[library]([0, 1], False)
    if library != "accelerate":
        assert [name for name in expected if "semckd" in name or "criterion" in name]
    for found in of_two:
        assert found[library].keys() == expected.keys()
        for name, value in found[library].items():
            torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_lightning_in_bf16(tmp_path: Path) -> None:
    if "lightning" not in LIBRARIES:
        pytest.skip("Lightning is not installed")
    with working_in(tmp_path):
        module = importlib.import_module("lightning_module").main(
            "student.pt", max_epochs=1, precision="bf16-mixed", devices=1, **SHORT_AND_SILENT
        )
        names = set(importlib.import_module("shared").Net(8).state_dict())
        assert torch.load("student.pt").keys() == names
    assert not module.distiller.teacher.training
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert 0 <= module.trainer.callback_metrics["accuracy"] <= 1
