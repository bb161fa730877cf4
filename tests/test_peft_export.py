"""`merge --peft`: what peft alone makes of the adapter, beside the trained model."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_base import causal, encoder, options, run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from tuned import EVERY, IDS, QUICK, by_peft, logits, merged, tuned

from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA
from spectrain.cli.merge import merge
from spectrain.errors import RunError, UsageError
from spectrain.linalg import svd
from spectrain.runs.adapter import export_adapter
from spectrain.runs.changes import Truncation
from spectrain.runs.export import export
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.task import FineTuning


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (LoRA(3), "llama"),
        (LoRA(2, alpha=6.0), "opt"),
        (LoRA(4, alpha=6.0, scaling="rslora"), "llama"),
    ],
    ids=["plain", "opt", "rslora"],
)
def test_lora_is_the_same_in_peft(tmp_path, method, kind):
    folder = tuned(tmp_path / "run", method, kind)
    done = export_adapter(folder, tmp_path / "adapter")
    assert done.error == 0.0
    assert {layer.rank for layer in done.layers} == {method.rank}
    loaded = by_peft(tmp_path / "adapter", kind)
    expected = merged(folder, tmp_path / "plain")
    torch.testing.assert_close(logits(loaded, IDS), logits(expected, IDS), rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(causal(kind))
    assert (logits(loaded, IDS) - logits(base, IDS)).abs().max() > 0.01  # it did learn
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (method.rank, {}, {})
    trained = load_file(max(folder.glob("checkpoints/step-*")) / "model.safetensors")
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    some = done.layers[0].name
    assert torch.equal(trained[f"{some}.A"], written[f"base_model.model.{some}.lora_A.weight"])


@pytest.mark.parametrize(
    "method",
    [
        FullRank(),
        SST(2, resample_every=2),
        ReLoRA(2, merge_every=2, rewarm=0),
        GaLore(2, refresh_every=2),
    ],
    ids=lambda method: method.title,
)
def test_a_whole_change_is_the_same_in_peft(tmp_path, method):
    folder = tuned(tmp_path / "run", method)
    done = export_adapter(folder, tmp_path / "adapter", truncation=EVERY)
    assert done.error < 1e-5
    expected = logits(merged(folder, tmp_path / "plain"), IDS)
    torch.testing.assert_close(
        logits(by_peft(tmp_path / "adapter"), IDS), expected, rtol=1e-3, atol=1e-3
    )


def test_a_cut_change_is_the_best_of_its_rank_and_says_what_is_left_out(tmp_path):
    folder = tuned(tmp_path / "run", FullRank())
    done = export_adapter(folder, tmp_path / "adapter", truncation=Truncation(rank=3))
    plain = merged(folder, tmp_path / "plain").state_dict()
    base = AutoModelForCausalLM.from_pretrained(causal()).state_dict()
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    squares = {}
    for layer in done.layers:
        change = (plain[f"{layer.name}.weight"] - base[f"{layer.name}.weight"]).double()
        U, s, V = svd(change)
        A, B = (written[f"base_model.model.{layer.name}.lora_{x}.weight"].double() for x in "AB")
        torch.testing.assert_close(B @ A, (U[:3].mT * s[:3]) @ V[:3], rtol=1e-3, atol=1e-5)
        assert layer.left_out == pytest.approx(float(s[3:].norm()), rel=1e-3)
        squares[layer.name] = float(s[3:].square().sum()), float(s.square().sum())
    left, whole = (sum(pair[i] for pair in squares.values()) for i in (0, 1))
    assert done.error == pytest.approx((left / whole) ** 0.5, rel=1e-3)
    origin = json.loads((tmp_path / "adapter" / "spectrain.json").read_text())
    assert origin["relative_error"] == done.error
    assert len(origin["base_sha256"]) == 64


def test_a_share_of_energy_gives_each_layer_its_own_rank(tmp_path):
    folder = tuned(tmp_path / "run", FullRank())
    done = export_adapter(folder, tmp_path / "adapter", truncation=Truncation(energy=0.8))
    assert len({layer.rank for layer in done.layers}) > 1
    for layer in done.layers:
        assert (layer.left_out / layer.norm) ** 2 <= 0.2 + 1e-6
    loaded = by_peft(tmp_path / "adapter")
    ranks = {
        name.removeprefix("base_model.model."): module.lora_A["default"].out_features
        for name, module in loaded.named_modules()
        if hasattr(module, "lora_A")
    }
    assert ranks == {layer.name: layer.rank for layer in done.layers}


def test_a_new_head_is_saved_whole(tmp_path):
    settings = {"model": encoder(0.0), "classify": True, "max_length": 32}
    task = TextClassification.load(options(**settings))
    run(tmp_path / "run", LoRA(2), task, **QUICK)
    done = export_adapter(tmp_path / "run", tmp_path / "adapter")
    assert {"classifier", "bert.pooler.dense"} == set(done.modules)
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(
        encoder(0.0), num_labels=len(task.classes)
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    export(tmp_path / "run", tmp_path / "plain")
    expected = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    ids = IDS % 20
    torch.testing.assert_close(logits(loaded, ids), logits(expected, ids), rtol=1e-4, atol=1e-5)


def test_a_model_cut_to_its_first_layers_says_so(tmp_path):
    folder = tuned(tmp_path / "run", LoRA(2), keep_layers=1)
    done = export_adapter(folder, tmp_path / "adapter")
    assert {layer.name.split(".")[2] for layer in done.layers} == {"0"}
    assert json.loads((tmp_path / "adapter" / "spectrain.json").read_text())["keep_layers"] == 1


# --- refusals ----------------------------------------------------------------------------------


def test_what_cannot_be_an_adapter_is_refused(tmp_path):
    folder = tuned(tmp_path / "run", SST(2))
    with pytest.raises(
        UsageError, match=r"no pair of thin matrices .* --peft-rank N or --peft-energy"
    ):
        export_adapter(folder, tmp_path / "adapter")
    with pytest.raises(UsageError, match="one of them"):
        Truncation()
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        Truncation(energy=1.5)
    assert not (tmp_path / "adapter").exists()
    assert not list(tmp_path.glob(".partial-*"))
    export(folder, tmp_path / "plain")
    with pytest.raises(UsageError, match="no run of spectrain"):
        export_adapter(tmp_path / "plain", tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UsageError, match="exists already"):
        export_adapter(folder, tmp_path / "full", truncation=EVERY)


def test_trained_embeddings_that_are_tied_are_refused(tmp_path):
    folder = tuned(tmp_path / "run", LoRA(2), train_ordinary=True)
    with pytest.raises(UsageError, match=r"embed_tokens.weight was trained and is tied to another"):
        export_adapter(folder, tmp_path / "adapter")


def test_another_base_is_refused(tmp_path):
    copied = tmp_path / "base"
    shutil.copytree(causal(), copied)
    task = FineTuning.load(options(model=str(copied), generate=0, before=False))
    run(tmp_path / "run", LoRA(2), task, **QUICK)
    model = AutoModelForCausalLM.from_pretrained(copied)
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    model.save_pretrained(copied)
    with pytest.raises(UsageError, match="has other weights than when"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = tuned(tmp_path / "run", LoRA(2))
    file = max(folder.glob("checkpoints/step-*")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RunError, match="no intact checkpoint"):
        export_adapter(folder, tmp_path / "adapter")


def test_the_command(tmp_path):
    folder = tuned(tmp_path / "run", ReLoRA(2, merge_every=2, rewarm=0))

    def call(*arguments):
        found = CliRunner().invoke(merge, [str(folder), *map(str, arguments)])
        if isinstance(found.exception, UsageError):
            return str(found.exception)
        assert found.exit_code == 0, found.output
        return found.output

    wanted = call("--peft", tmp_path / "adapter", "--peft-energy", "0.9")
    assert "adapter of 14 layers, ranks" in wanted
    assert "Left out of the change: 0." in wanted
    assert "peft.PeftModel.from_pretrained(base_model, " in wanted
    by_peft(tmp_path / "adapter")
    for arguments, said in (
        ((), "give --out DIR for an ordinary model or --peft DIR"),
        (("--out", "a", "--peft", "b"), "one of them"),
        (("--out", "a", "--peft-rank", "2"), "belong to --peft"),
        (("--peft", "b", "--prune", "0.9"), "leave --prune out"),
        (("--peft", "b", "--peft-rank", "0"), "must be 1 or more"),
        (("--peft", "b", "--peft-rank", "1", "--peft-energy", "0.5"), "one of them"),
    ):
        assert said in call(*arguments)
