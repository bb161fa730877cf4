"""Adapters that go to peft and come from it, beside what peft alone makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_base import causal, encoder, options, run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA
from spectrain.cli.finetune import train_finetune
from spectrain.cli.merge import merge
from spectrain.errors import RunError, UsageError
from spectrain.integrations.peft import Adapters, PeftAdapter
from spectrain.linalg import svd
from spectrain.runs.adapter import export_adapter
from spectrain.runs.changes import Truncation
from spectrain.runs.export import export
from spectrain.surgery import parametrized
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.task import FineTuning

QUICK = {"steps": 4, "eval_every": 0, "checkpoint_every": 0, "lr": 0.02}
EVERY = Truncation(energy=1.0)


def tuned(folder: Path, method, kind: str = "llama", **settings) -> Path:
    task = FineTuning.load(options(model=causal(kind), generate=0, before=False, **settings))
    run(folder, method, task, **QUICK)
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def by_peft(adapter: Path, kind: str = "llama"):
    """Base and adapter, loaded as anyone would."""
    return peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(causal(kind)), adapter
    )


def merged(folder: Path, out: Path):
    export(folder, out)
    return AutoModelForCausalLM.from_pretrained(out)


IDS = torch.arange(24).view(2, 12) * 5 % 300


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
    torch.testing.assert_close(
        (logits(loaded, IDS) - logits(merged(folder, tmp_path / "plain"), IDS)).abs().max(),
        torch.tensor(done.difference),
        rtol=9.0,  # of another input: of the same order
        atol=0.0,
    )


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


# --- adapters made elsewhere -------------------------------------------------------------------


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
    done = export_adapter(tmp_path / "run", tmp_path / "ours")  # nothing was learned at rate 0
    assert (done.error, {layer.rank for layer in done.layers}) == (0.0, {3})
    theirs, ours = (by_peft(path) for path in (adapter, tmp_path / "ours"))
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
    ids=["sst", "rank", "alpha", "layers", "dora", "bias", "embedding"],
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


# --- several on one model ----------------------------------------------------------------------


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


# --- training beside peft ----------------------------------------------------------------------


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
