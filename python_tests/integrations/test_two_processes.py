"""Two gloo processes train as one does: each has half of a batch, and their gradients are averaged."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

LIBRARIES = [name for name in ("timm", "torchdistill") if importlib.util.find_spec(name) is not None]
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="neither timm nor torchdistill is installed")


def gradients(library: str, halves: list[int], distributed: bool = False) -> dict[str, Tensor]:
    """Mean over halves of the batch; of one process or, by DistributedDataParallel, of both."""
    sys.path.insert(0, str(Path(__file__).parent))
    if library == "timm":
        from test_timm import IMAGES, LABELS, task

        module = task()
        if distributed:
            module.prepare_distributed()
        trained: nn.Module = module.trainable_module
        losses = [module(IMAGES[2 * n : 2 * n + 2], LABELS[2 * n : 2 * n + 2])["loss"] for n in halves]
    else:
        from test_torchdistill import BATCH, box

        made = box(distributed=distributed)
        trained = made.student_model
        losses = [made.forward_process(*(x[4 * n : 4 * n + 4] for x in BATCH)) for n in halves]
    (sum(losses[1:], losses[0]) / len(losses)).backward()
    return {name.replace("module.", ""): p.grad for name, p in trained.named_parameters() if p.grad is not None}


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {library: gradients(library, [rank], distributed=True) for library in LIBRARIES}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def second(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    train(1, folder)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    # this process is the first: a second interpreter takes longer to start than everything here to run
    other = mp.start_processes(second, (str(folder),), nprocs=1, join=False, start_method="spawn")
    train(0, str(folder))
    while not other.join():
        pass
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_gradients_are_those_of_one_process(library: str, of_two: list[dict[str, dict[str, Tensor]]]) -> None:
    expected = gradients(library, [0, 1])
    assert [name for name in expected if "semckd" in name or "criterion" in name]
    for found in of_two:
        assert found[library].keys() == expected.keys()
        for name, gradient in found[library].items():
            torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")
