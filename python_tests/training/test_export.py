"""``semckd export``: files that compute what the run's network does, and a card that says what they are."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_nets import make_config, train

from semckd_kernels import cli
from semckd_kernels.training import export as module
from semckd_kernels.training.export import FORMATS, Exported, ExportError, export, formats
from semckd_kernels.training.export_formats import FILES, PACKAGES
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.run.folder import RunFolder

pytest.importorskip("safetensors")
pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def runs(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a moving average, of two seeds, and another run beside them."""
    root = tmp_path_factory.mktemp("runs")
    recipe = {"recipe.ema": 0.9, "recipe.batch_size": 500, "hardware.channels_last": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "write_report", lambda folder: None)
        for name, run in {
            "first": training_nets.semckd(teacher, **recipe),
            "second": training_nets.semckd(teacher, **recipe, **{"recipe.seed": 5}),
            "other": make_config(**{"recipe.epochs": 1, "recipe.batch_size": 500}),
        }.items():
            engine.finish(training_nets.make_trainer(root / name, run))
    return root


def logits(net: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return images, net(images)


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Every format of the first run that this environment can write."""
    missing = {form for form, names in PACKAGES.items() if any(find_spec(name) is None for name in names)}
    return export(
        runs / "first", tuple(form for form in FORMATS if form not in missing), tmp_path_factory.mktemp("exported")
    )


def file_of(exported: Exported, form: str) -> Path:
    found = [path for path in exported.files if path.name == FILES[form]]
    return found[0] if found else pytest.skip(f"{' and '.join(PACKAGES[form])} are not installed")


def test_the_weights_are_the_average(runs: Path, exported: Exported) -> None:
    from safetensors.torch import load_file

    average = training_nets.state(runs / "first", "best")["student"]
    assert training_nets.differences(load_file(file_of(exported, "state-dict")), dict(average)) == []
    assert exported.differences["state-dict"] == 0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
def test_programs_take_any_batch(form: str, count: int, runs: Path, exported: Exported) -> None:
    path = file_of(exported, form)
    images, expected = logits(RunFolder(runs / "first").load().student.net, count)
    if form == "onnx":
        import onnxruntime

        found = torch.from_numpy(onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})[0])
    else:
        found = torch.export.load(path).module()(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert exported.differences[form] < 1e-4


def test_the_card(runs: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    done = export(runs / "second", out=tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    best = RunFolder(runs / "second").summary["accuracy"]["best"]
    top1, top5 = card.data.eval_results
    assert (top1.metric_value, top5.metric_value) == pytest.approx((best["top1"], best["top5"]), abs=1e-6)
    assert (card.data.pipeline_tag, card.data.model_name) == ("image-classification", "grey-digits-semckd")
    text = card.text
    for part in (
        "`training_nets:grey` distilled from `training_nets:wide` by SemCKD (method `semckd`) on digits",
        "moving average of decay 0.9",
        f"| 5 | {best['top1']:.2%} | {best['top5']:.2%} | 1 |\n| 0 | ",
        "Over 2 seeds top-1 is ",
        f"on a batch of {done.images} test images (top-1 {done.top1:.2%})",
        "Input: fp32 `[B, 1, 16, 16]`, pixels from 0 to 1 less the mean [0.3054], divided by [0.319]",
        "| `recipe.seed` | 5 |",
        "| `method.beta` | 50 |",
        f"| torch | {torch.__version__.partition('+')[0]}",
        "Teacher: `training_nets:wide`, `teacher`, top-1 ",
    ):
        assert part in text, part
    # nothing of this machine's folders, nor of options without an effect
    assert str(runs) not in text
    assert "logging." not in text
    assert "method.pair" not in text


def test_the_code_of_the_card_runs(runs: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported.files[0].parent
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    images, expected = logits(RunFolder(runs / "first").load().student.net, 2)
    names = {"images": images.numpy()}
    parts = code.split("\n\n")
    assert len(parts) == len(exported.files) - 1
    for part in parts:
        exec(part, names)
        found = torch.from_numpy(names["logits"]) if "logits" in names else names["net"](images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        names.pop("logits", None)


def test_a_file_that_computes_something_else_is_not_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = formats.make
    monkeypatch.setattr(formats, "make", lambda *args: (make(*args)[0], make(*args)[1] + 0.1))
    with pytest.raises(ExportError, match=r"state-dict: the file's logits differ .* by 0\.1 on a batch of 360 images"):
        export(runs / "other", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert cli.main(["export", str(runs / "other"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(runs / "other"), "--which", "last"]) == 0
    printed = capsys.readouterr().out
    out = runs / "other" / "export"
    assert "state-dict: logits of 360 test images differ from the run's by at most 0\n" in printed
    assert f"Written: {out / 'model.safetensors'}, {out / 'README.md'}\n" in printed
    # a teacher, as any file of weights is
    flags = ["--teacher", "training_nets:grey", "--teacher-weights", str(out / "model.safetensors")]
    assert train(runs / "taught", *flags, "--teacher-layers", "a,b", "--method", "kd", "--print-config") == 0
    # it goes with its run
    assert train(runs / "other", "--epochs", "1", "--batch-size", "500", "--overwrite") == 0
    assert not out.exists()


def test_one_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path)]) == 2
    assert f"semckd export: '{tmp_path}' is not the folder of a run" in capsys.readouterr().err
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert cli.main(["export", str(runs / "first"), "--format", "onnx"]) == 2
    printed = capsys.readouterr().err
    assert "format onnx needs onnx and onnxscript and onnxruntime, not installed: run pip install" in printed
    assert "semckd-kernels[export]" in printed
    monkeypatch.setattr(module.card, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="a model card needs huggingface_hub, which is not installed"):
        export(runs / "first", "torch-export")
    with pytest.raises(ValueError, match="format must be one of state-dict, torch-export, onnx, got 'tflite'"):
        export(runs / "first", "tflite")
