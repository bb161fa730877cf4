"""The task `image`: both networks, the order of data, the common loop, plain checkpoints."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from cases import every_default
from tiny import final, last, rows
from torch import nn
from torch.nn import functional as F

from spectrain import SST, FullRank, GaLore, LoRA
from spectrain.errors import RunError, UsageError
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import _locked, _train, train
from spectrain.runs.options import RunOptions
from spectrain.runs.processes import Team
from spectrain.runs.view import Silent
from spectrain.surgery import parametrized
from spectrain.tasks.batch import Examples
from spectrain.tasks.image.builtin import digits
from spectrain.tasks.image.images import Images
from spectrain.tasks.image.models import build
from spectrain.tasks.image.options import ImageOptions
from spectrain.tasks.image.picture import mistakes
from spectrain.tasks.image.plain import load_network, outputs
from spectrain.tasks.image.predictions import logits_of, measured
from spectrain.tasks.image.task import ImageClassification
from spectrain.tasks.order import EpochOrder

METHOD = SST(rank=4, resample_every=4, warmup=2, iterations_per_round=2)
MLP = {"model": "mlp", "hidden": "32,32"}
VIT = {"model": "vit", "patch_size": 4, "dim": 16, "layers": 2, "heads": 2}
both = pytest.mark.parametrize("model", [MLP, VIT], ids=["mlp", "vit"])


class Undrawn(ImageClassification):
    """It draws no mistakes, which takes longer than to train."""

    def exhibits(self, model):
        return {}


def make_task(kind=Undrawn, **options):
    return kind.on(digits(), ImageOptions(**{"batch_size": 32, **options}))


def make_options(**options):
    values = {"steps": 12, "lr": 5e-3, "warmup": 0.0, "exclude": "head", "log_every": 4}
    values |= {"eval_every": 6, "checkpoint_every": 4, "keep": 20, "device": "cpu"}
    return RunOptions(**values | options)


def run(directory, method=METHOD, task=None, **options):
    """What `train image` does, but for the report."""
    chosen, team = make_options(**options), Team()
    with _locked(directory, team):
        return _train(task or make_task(**MLP), method, chosen, directory, Silent(), team)


# --- data --------------------------------------------------------------------------------------


def test_an_epoch_visits_each_image_once_in_an_order_of_its_own():
    order = EpochOrder(50, seed=1)
    places = order.rows(0, 150).view(3, 50)
    assert all(epoch.sort().values.tolist() == list(range(50)) for epoch in places)
    assert not torch.equal(places[0], places[1])
    again = EpochOrder(50, seed=1)
    across = [again.rows(first, 30) for first in (120, 0, 90, 60, 30)]
    assert torch.equal(torch.cat([across[i] for i in (1, 4, 3, 2, 0)]), places.flatten())
    assert not torch.equal(EpochOrder(50, seed=2).rows(0, 50), places[0])


def test_batches_follow_from_seed_and_step():
    task, again = make_task(accumulate=2), make_task(accumulate=2)
    for step in (40, 3):
        first, second = task.micro_batches(step, 1), again.micro_batches(step, 1)
        assert len(first) == 2
        for a, b in zip(first, second, strict=True):
            assert a.inputs.dtype == torch.uint8
            assert a.inputs.shape == task.blank().inputs.shape == (32, 1, 8, 8)
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
    other = task.micro_batches(3, 2)[0]
    assert not torch.equal(task.micro_batches(3, 1)[0].inputs, other.inputs)


def test_accumulated_passes_are_one_larger_batch():
    small, large = make_task(batch_size=16, accumulate=2, **MLP), make_task(batch_size=32, **MLP)
    gradients = []
    for task in (small, large):
        torch.manual_seed(0)
        model = task.build_model()
        batches = task.micro_batches(5, 3)
        for batch in batches:
            (task.loss(model, batch) / len(batches)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# --- networks ----------------------------------------------------------------------------------


@both
def test_networks_standardise_pixels_by_the_training_images(model):
    task = make_task(**model)
    network = task.build_model()
    pixels = task.images.parts["train"].inputs
    x = (pixels / 255 - network.mean) / network.deviation
    assert abs(x.mean().item()) < 1e-4
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(network(pixels[:3]), network.head(network.encode(x[:3])))
    assert all(p.is_meta for p in task.skeleton().parameters())


def test_the_mlp_is_linear_maps_with_relu_between():
    task = make_task(**MLP)
    network = task.build_model()
    pixels = task.micro_batches(0, 0)[0].inputs
    x = ((pixels / 255 - network.mean) / network.deviation).flatten(1)
    for layer in network.layers:
        x = F.relu(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(network(pixels), x @ network.head.weight.T + network.head.bias)


def test_a_block_is_that_of_torch():
    torch.manual_seed(0)
    block = make_task(**VIT).build_model().blocks[0]
    known = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, F.gelu, batch_first=True, norm_first=True
    ).eval()
    joined = (block.query, block.key, block.value)
    with torch.no_grad():
        known.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in joined]))
        biases = block.query.bias, torch.zeros(16), block.value.bias
        known.self_attn.in_proj_bias.copy_(torch.cat(biases))
    pairs = (known.self_attn.out_proj, block.output), (known.linear1, block.up)
    for theirs, ours in (*pairs, (known.linear2, block.down)):
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 16)
    torch.testing.assert_close(block(x), known(x), atol=1e-5, rtol=1e-5)


def test_a_vit_knows_where_a_patch_is():
    task = make_task(**VIT)
    network = task.build_model()
    pixels = task.micro_batches(0, 0)[0].inputs
    assert not torch.allclose(network(pixels), network(pixels.flip(-1)), atol=1e-4)
    with torch.no_grad():
        network.positions.zero_()
    turned = torch.cat((pixels[..., 4:], pixels[..., :4]), -1)  # the same patches elsewhere
    torch.testing.assert_close(network(pixels), network(turned), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({}, "is none of mlp and vit"),
        ({"architecture": "resnet"}, "is none of mlp and vit"),
        ({"architecture": "mlp", "shape": [1, 8, 8], "classes": ["a"], "hidden": []}, "no network"),
        ({"architecture": "mlp", "shape": [1, 8], "classes": ["a"], "hidden": [4]}, "no network"),
        ({"architecture": "mlp", "shape": [1, 8, 8], "classes": ["a"], "wings": 2}, "no network"),
        (
            {"architecture": "vit", "shape": [1, 8, 8], "classes": ["a"], "patch_size": 0},
            "no network",
        ),
    ],
)
def test_a_description_of_no_network_is_refused(description, said):
    with pytest.raises(UsageError, match=said):
        build(description)


# --- training ----------------------------------------------------------------------------------


@both
def test_both_networks_learn_the_digits(tmp_path, model):
    task = make_task(ImageClassification, **model, dropout=0.05)
    method = SST(rank=8, resample_every=50, warmup=5)
    steps = 100 if model is MLP else 150
    options = make_options(steps=steps, lr=1e-2, eval_every=50)
    result, _ = train(task, method, options, tmp_path / "run", Silent())
    assert result["test_accuracy"] > 0.85
    assert result["test_loss"] < 0.5
    assert result["images"] == 32 * steps
    found = [
        row["validation_accuracy"] for row in rows(tmp_path / "run") if "validation_loss" in row
    ]
    assert found[-1] > found[0]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Test images that the network takes for something else" in report
    assert (tmp_path / "run" / "mistakes.png").stat().st_size > 1000


@both
@every_default
def test_every_method_trains_with_each_network(tmp_path, method, model):
    result = run(tmp_path / "run", method, make_task(**model), steps=5, eval_every=0)
    assert result["failed"] is None
    memory = result["memory"]
    planned, measured_ = memory["planned"], memory["measured"]
    for part in ("weights", "gradients", "optimizer"):
        assert planned[part] == measured_[part]
    assert planned["peak"] == pytest.approx(measured_["peak"], rel=0.05)


def test_the_tasks_own_switches_are_planned(tmp_path):
    task = make_task(**VIT, accumulate=2, dropout=0.1, label_smoothing=0.1)
    memory = run(tmp_path, SST(4), task, steps=3, dtype="bfloat16")["memory"]
    assert memory["planned"]["peak"] == pytest.approx(memory["measured"]["peak"], rel=0.05)


@pytest.mark.parametrize("at", [2, 6])
@both
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, at, model):
    class Stopping(Undrawn):
        once = True

        def micro_batches(self, step, seed):
            if step == at and self.once:
                self.once = False
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    options = {"batch_size": 200, "dropout": 0.2, **model}  # the second epoch begins in step 6
    run(tmp_path / "whole", task=make_task(**options), steps=9)
    task = make_task(Stopping, **options)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", task=task, steps=9)
    run(tmp_path / "parts", task=make_task(**options), steps=9)
    first, second = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_patience_chooses_by_accuracy(tmp_path):
    result = run(tmp_path / "run", steps=40, eval_every=4, patience=8, lr=2e-2)
    seen = {r["step"]: r["validation_accuracy"] for r in rows(tmp_path / "run") if "loss" not in r}
    assert result["validation_accuracy"] == max(seen.values()) == seen[result["best_step"]]


# --- measuring ---------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Logits that are the pixels of the first row."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, pixels):
        return self.drop(self.scale * pixels[:, 0, 0, :3].float())


def test_scores_are_those_of_all_images():
    pixels = torch.randint(0, 5, (601, 1, 2, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (601,))
    found = measured(Fixed(), Examples(pixels, labels), torch.float32, None)
    logits = pixels[:, 0, 0].float()
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("count", [8, 9, 10])
def test_shares_of_several_processes_add_up(count):
    """Each process's sums, averaged, give what one process finds."""
    pixels = torch.randint(0, 5, (count, 1, 2, 3), dtype=torch.uint8)
    examples = Examples(pixels, torch.randint(0, 3, (count,)))
    whole = measured(Fixed(), examples, torch.float32, None)

    class Part:
        size = 3

        def __init__(self, rank):
            self.rank, self.sums = rank, None

        def mean(self, tensor):
            self.sums = tensor.clone()

    parts = [Part(rank) for rank in range(3)]
    for part in parts:
        measured(Fixed(), examples, torch.float32, part)
    right, loss, number = sum(part.sums for part in parts)
    assert number == count
    assert right / number == pytest.approx(whole["accuracy"])
    assert loss / number == pytest.approx(whole["loss"])


def test_measuring_leaves_the_mode_as_it_was():
    model = Fixed().train()
    logits_of(model, torch.zeros(4, 1, 2, 3, dtype=torch.uint8))
    assert model.training
    assert model.drop.training


def test_the_picture_shows_the_most_confident_mistakes(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, text, **how: shown.append(text)
    )
    pixels = torch.zeros(4, 3, 6, 6, dtype=torch.uint8)
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.05, 0.95], [0.6, 0.4]])
    drawn = mistakes(pixels, torch.tensor([0, 0, 0, 1]), probabilities, ("c" * 30, "$x$"))
    assert drawn.startswith(b"\x89PNG")
    name = "c" * 15 + "…"
    assert shown == [
        f"is {name}\ntaken for $x$\nat 95 %",
        f"is {name}\ntaken for $x$\nat 70 %",
        f"is $x$\ntaken for {name}\nat 60 %",
    ]
    assert mistakes(pixels, torch.tensor([0, 1, 1, 0]), probabilities, ("a", "b")) is None


# --- plain checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [METHOD, LoRA(4), FullRank(), GaLore(4)], ids=lambda m: m.title)
@both
def test_a_merged_network_is_plain_and_computes_the_same(tmp_path, method, model):
    task = make_task(**model)
    result = run(tmp_path / "run", method, task, steps=8)
    done = export(tmp_path / "run", tmp_path / "plain")
    assert done.difference <= 1e-4 * max(1, done.largest)
    network = load_network(tmp_path / "plain")
    assert not list(parametrized(network))
    assert network.state_dict().keys() == task.build_model().state_dict().keys()
    assert (network.shape, network.classes) == ((1, 8, 8), task.images.classes)
    again = measured(network, task.images.parts["test"], torch.float32, None)
    assert again["accuracy"] == pytest.approx(result["test_accuracy"], abs=0.003)
    assert again["loss"] == pytest.approx(result["test_loss"], rel=1e-3)
    for strange in (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9, dtype=torch.uint8)):
        with pytest.raises(RunError, match="no input of this model"):
            outputs(tmp_path / "plain", strange)
    description = read_json(tmp_path / "plain" / "config.json")
    (tmp_path / "plain" / "config.json").write_text(json.dumps({**description, "classes": ["a"]}))
    with pytest.raises(RunError, match="cannot be loaded"):
        load_network(tmp_path / "plain")


def test_the_probe_is_kept_with_the_checkpoint(tmp_path):
    run(tmp_path, steps=4)
    tensors = final(tmp_path)
    assert tensors["probe/input"].dtype == torch.uint8
    assert tensors["probe/output"].shape == (16, 10)
    assert last(tmp_path).step == 4


def test_a_fingerprint_knows_images_and_division():
    one, other = make_task(), make_task(split_seed=5)
    assert one.summary()["fingerprint"] == make_task().summary()["fingerprint"]
    assert one.summary()["fingerprint"] != other.summary()["fingerprint"]
    changed = dict(one.images.parts)
    train_part = changed["train"]
    changed["train"] = Examples(train_part.inputs + 1, train_part.targets)
    moved = Images("digits", one.images.classes, changed)
    assert moved.fingerprint != one.images.fingerprint
