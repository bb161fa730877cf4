"""`train image` and `compare image`: their options, and what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrain.cli import training
from spectrain.cli.options import SectionedCommand, built, options_of
from spectrain.runs.options import RunOptions
from spectrain.tasks.image.options import ImageOptions

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.image.task import ImageClassification

DEFAULTS: dict[str, Any] = {"steps": 1000, "exclude": "head", "eval_every": 100}


def _train_image(out: Path, fork: Path | None, method: str, **values: Any) -> None:
    chosen = training.chosen_method(method, values)
    options = built(RunOptions, values)
    console, result, report = training.run_training(
        lambda console: _task(values, console), chosen, options, out, fork
    )
    scores = [
        ("steps", _steps(result)),
        ("accuracy", _both(result, "accuracy", "{:.2%}")),
        ("cross-entropy", _both(result, "loss", "{:.4f}")),
    ]
    last = [("report", str(report)), training.after(chosen, out)]
    training.summarise(console, chosen, result, scores, last)


def _steps(result: dict[str, Any]) -> str:
    text = f"{result['steps']:,} ({result['images']:,} images)"
    if "best_step" not in result:
        return text
    why = "stopped by patience" if result["stopped_early"] else "all made"
    return f"{text}, {why}; the results are of step {result['best_step']:,}, the best one"


def _both(result: dict[str, Any], key: str, form: str) -> str:
    validation, test = (
        form.format(result[f"{split}_{key}"]).replace("%", " %") for split in ("validation", "test")
    )
    return f"{validation} validation, {test} test"


train_image = SectionedCommand(
    "image",
    callback=_train_image,
    help="Learn to tell classes of images apart, with an MLP or a small vision transformer.\n\n"
    "Without --data the 1,797 handwritten digits of scikit-learn are learned; nothing is downloaded.\n\n"
    "Example: spectrain train image --method sst --method.rank 8 --out runs/digits\n\n"
    "Example: spectrain train image --model vit --patch-size 2 --method full --out runs/vit\n\n"
    "Example: spectrain train image --data fashion-mnist/ --batch-size 128 --steps 4000 "
    "--method lora --method.rank 16 --out runs/fashion",
    sections=[
        ("Run", training.RUN),
        ("Images and model", options_of(ImageOptions)),
        ("Training", options_of(RunOptions, defaults=DEFAULTS)),
        *training.method_sections(),
    ],
)


def _compare_image(**values: Any) -> None:
    training.run_comparison(lambda console: _task(values, console), values)


compare_image = SectionedCommand(
    "image",
    callback=_compare_image,
    help="Compare methods at telling classes of images apart: the same data order, budget and number "
    "of trials for each.\n\nFinished trials are kept; the same command continues.\n\n"
    "Example: spectrain compare image --methods full,sst,lora --rank 8 --steps 500 --out runs/compare",
    sections=[
        ("Comparison", training.comparison(8, "1e-3,2e-3,4e-3")),
        ("Images and model", options_of(ImageOptions)),
        ("Training", options_of(RunOptions, skip=("lr",), defaults=DEFAULTS)),
        *training.arm_sections(),
    ],
)


def _task(values: dict[str, Any], console: Console) -> ImageClassification:
    """Load the images and print what is learned from."""
    from spectrain.tasks.image.task import ImageClassification

    options = built(ImageOptions, values)
    with console.status("reading the images"):
        task = ImageClassification.load(options)
    epochs = values["steps"] / task.steps_per_epoch
    length = f"{values['steps']:,} steps of {task.units_per_step:,} images are {epochs:.1f} epochs"
    for line in (task.describe(), *(f"note: {note}" for note in task.images.notes), length):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return task
