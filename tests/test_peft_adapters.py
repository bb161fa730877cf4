"""Adapters made by peft: continued, switched on one model, and trained beside."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_base import causal, options
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from tuned import IDS, by_peft, logits, tuned

import spectrain
from spectrain import LoRA
from spectrain.cli.finetune import train_finetune
from spectrain.errors import RunError, UsageError
from spectrain.integrations.peft import Adapters, PeftAdapter
from spectrain.runs.adapter import export_adapter
from spectrain.surgery import parametrized
from spectrain.tasks.finetune.task import FineTuning

# --- adapters made elsewhere ----------------------------------------------------------------------


def made_by_peft(folder: Path, train=(), **settings) -> Path:
    """An adapter that peft alone has made and saved, with random factors."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(causal())
    chosen = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | settings
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **chosen))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name or any(part in name for part in train):
                parameter.normal_(std=0.1)
    made.save_pretrained(folder)
    return folder


def command(adapter: Path, out: Path, *more):
    arguments = ["--model", causal(), "--adapter", adapter, "--max-length", 160, "--batch-size", 4]
    arguments += ["--eval-examples", 8, "--final-examples", 8, "--generate", 0, "--device", "cpu"]
    arguments += ["--eval-every", 0, "--out", out, *more]
    found = CliRunner().invoke(train_finetune, [str(a) for a in arguments])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_is_continued(tmp_path, rslora):
    adapter = made_by_peft(tmp_path / "theirs", use_rslora=rslora)
    found = command(adapter, tmp_path / "run", "--method", "lora", "--steps", "1", "--lr", "0")
    assert "with the adapter in" in found.output
    theirs = by_peft(adapter)
    shutil.rmtree(adapter)  # not needed any more
    done = export_adapter(tmp_path / "run", tmp_path / "ours")  # nothing was learned at rate 0
    assert (done.error, {layer.rank for layer in done.layers}) == (0.0, {3})
    ours = by_peft(tmp_path / "ours")
    torch.testing.assert_close(logits(ours, IDS), logits(theirs, IDS), rtol=1e-4, atol=1e-4)
    before = json.loads((tmp_path / "run" / "before.json").read_text())
    after = json.loads((tmp_path / "run" / "result.json").read_text())
    assert before["test_loss"] == pytest.approx(after["test_loss"], rel=1e-5)


def test_continuing_learns_and_resumes(tmp_path):
    adapter = made_by_peft(tmp_path / "theirs")
    arguments = (
        "--method",
        "lora",
        "--steps",
        "6",
        "--lr",
        "0.02",
        "--checkpoint-every",
        "3",
        "--keep",
        "9",
    )
    command(adapter, tmp_path / "run", *arguments)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        result["test_loss"]
        < json.loads((tmp_path / "run" / "before.json").read_text())["test_loss"]
    )
    whole = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    (tmp_path / "run" / "result.json").unlink()
    command(adapter, tmp_path / "run", *arguments)
    again = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        ({}, ("--method", "sst"), r"no factors that an adapter could start: take --method lora"),
        ({}, ("--method", "switchlora"), "no factors that an adapter could start"),
        ({}, ("--method", "lora", "--method.rank", "4"), "is of rank 3 at .* method of rank 4"),
        (
            {},
            ("--method", "lora", "--method.alpha", "1"),
            "scales B A by 2 at .* give the adapter's alpha",
        ),
        ({}, ("--method", "lora", "--targets", ".*k_proj"), "are of other layers"),
        ({"use_dora": True}, ("--method", "lora"), "has use_dora = true"),
        ({"bias": "all"}, ("--method", "lora"), 'has bias = "all"'),
        ({"target_modules": ["embed_tokens"]}, ("--method", "lora"), "of no LoRA of linear layers"),
    ],
    ids=["sst", "switchlora", "rank", "alpha", "layers", "dora", "bias", "embedding"],
)
def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, settings, flags, said):
    adapter = made_by_peft(tmp_path / "theirs", **settings)
    with pytest.raises(UsageError, match=said):
        command(adapter, tmp_path / "run", "--steps", "1", *flags)


def test_damaged_and_foreign_adapters_are_refused(tmp_path):
    adapter = made_by_peft(tmp_path / "theirs")
    tensors = load_file(adapter / "adapter_model.safetensors")
    lacking = {
        k: t
        for k, t in tensors.items()
        if not k.endswith("layers.0.self_attn.q_proj.lora_B.weight")
    }
    save_file(lacking, adapter / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"no pair of factors for model.layers.0.self_attn.q_proj"):
        PeftAdapter.read(adapter)
    short = {k: t[:, :8].contiguous() if "_A" in k else t for k, t in tensors.items()}
    save_file(short, adapter / "adapter_model.safetensors")
    with pytest.raises(
        UsageError, match=r"another base model: .*0.self_attn.q_proj is 16 × 16 here"
    ):
        Adapters(AutoModelForCausalLM.from_pretrained(causal())).load("x", adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="is damaged"):
        PeftAdapter.read(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="pickled ones are not read"):
        PeftAdapter.read(adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UsageError, match="of the kind IA3; only LORA"):
        PeftAdapter.read(adapter)
    with pytest.raises(UsageError, match=r"it has no adapter_config.json"):
        PeftAdapter.read(tmp_path)


def test_an_adapter_for_other_weights_is_refused(tmp_path):
    folder = tuned(tmp_path / "run", LoRA(2))
    export_adapter(folder, tmp_path / "adapter")
    with pytest.raises(UsageError, match="was made for a model with other weights"):
        FineTuning.load(options(model=causal("opt"), adapter=str(tmp_path / "adapter"), generate=0))


# --- several on one model -------------------------------------------------------------------------


def test_adapters_are_switched_and_leave_the_model_as_it_was(tmp_path):
    first = made_by_peft(tmp_path / "first")
    second = made_by_peft(tmp_path / "second", r=2, target_modules=["k_proj", "down_proj"])
    third = made_by_peft(tmp_path / "third", train=("norm",), modules_to_save=["norm"])
    model = AutoModelForCausalLM.from_pretrained(causal())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = logits(model, IDS)
    adapters = Adapters(model)
    for name, folder in (("first", first), ("second", second), ("third", third)):
        adapters.load(name, folder)
    assert adapters.names == ["first", "second", "third"]
    for name, folder in (("first", first), ("second", second), ("third", third), ("first", first)):
        adapters.use(name)
        assert adapters.active == name
        expected = logits(by_peft(folder), IDS)
        assert (expected - alone).abs().max() > 0.01
        torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-5)
    adapters.remove("first")
    assert (adapters.names, adapters.active) == (["second", "third"], None)
    assert torch.equal(logits(model, IDS), alone)
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], state[name]) for name in state)
    with pytest.raises(UsageError, match="no adapter called 'first'"):
        adapters.use("first")
    with pytest.raises(UsageError, match="there is an adapter called 'third' already"):
        adapters.load("third", third)


def test_layers_that_store_the_transpose_are_met(tmp_path):
    """GPT-2's Conv1D."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)).eval()
    kind = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    made = peft.get_peft_model(copy.deepcopy(model), kind)
    made.save_pretrained(tmp_path / "adapter")
    adapters = Adapters(model)
    adapters.load("one", tmp_path / "adapter")
    adapters.use("one")
    torch.testing.assert_close(logits(model, IDS), logits(made, IDS), rtol=1e-4, atol=1e-5)
    spectrain.apply(model, LoRA(2, alpha=8.0), targets=r".*c_attn", report=None)
    adapters.use(None)
    PeftAdapter.read(tmp_path / "adapter").start(model)
    torch.testing.assert_close(logits(model, IDS), logits(made, IDS), rtol=1e-4, atol=1e-5)


def test_an_adapter_on_a_bf16_model_is_added_in_its_own_precision(tmp_path):
    adapter = made_by_peft(tmp_path / "theirs")
    model = AutoModelForCausalLM.from_pretrained(causal(), dtype=torch.bfloat16)
    adapters = Adapters(model)
    adapters.load("one", adapter)
    adapters.use("one")
    expected = logits(by_peft(adapter), IDS)
    found = logits(model, IDS)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max())
    )


# --- training beside peft -------------------------------------------------------------------------


def test_a_hundred_steps_have_the_losses_of_peft():
    """From the same factors, on the same data: LoRA of every linear layer, AdamW, float32."""
    torch.manual_seed(3)
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(causal()),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    ours = spectrain.apply(
        AutoModelForCausalLM.from_pretrained(causal()), LoRA(4, alpha=8.0), report=None
    )
    ours.requires_grad_(False)
    for name, layer in parametrized(ours):
        for factor in ("A", "B"):
            own = theirs.get_parameter(f"base_model.model.{name}.lora_{factor}.default.weight")
            layer.get_parameter(factor).requires_grad_().data.copy_(own)
        layer.note_versions()
    trained = [p for p in theirs.parameters() if p.requires_grad]
    runs = (
        (theirs, torch.optim.AdamW(trained, 3e-3)),
        (ours, torch.optim.AdamW(spectrain.param_groups(ours, 3e-3, weight_decay=0.01))),
    )
    batches = torch.randint(40, (4, 4, 16))
    losses = []
    for model, optimizer in runs:
        model.train()
        losses.append([])
        for step in range(100):
            ids = batches[step % 4]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < losses[0][0] - 0.5  # it learns
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0.0, atol=1e-4)
