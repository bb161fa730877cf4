"""Merged checkpoints are ordinary ones: keys, files, logits; what does not agree is not kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import torch
from cases import CASES, every_default_matrix
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import OPT, last, make_task, run
from transformers import AutoModelForCausalLM, AutoTokenizer

import spectrain
from spectrain import SST, GaLore, LoRA, ReLoRA
from spectrain.errors import RunError, UsageError
from spectrain.runs import export as export_module
from spectrain.runs.export import export
from spectrain.runs.files import read_json, write_json


def trained(directory, method, task=None):
    """The run, and the same model merged in memory, from the same checkpoint."""
    task = task or make_task()
    run(directory, method, task, eval_every=0)
    model = task.build_model()
    spectrain.apply(model, method.phases(12)[-1][0], report=None)
    found = last(directory)
    tensors = load_file(found.path / "model.safetensors")
    tied = found.state()["tied"]
    model.load_state_dict(tensors | {name: tensors[source] for name, source in tied.items()})
    return spectrain.merge(model).eval()


def loaded(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()


def agree(a, b, tolerance=1e-5):
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        first, second = (m(input_ids=ids, use_cache=False).logits.float() for m in (a, b))
    assert (first - second).abs().max() <= tolerance * first.abs().max()
    assert first.std() > 0.01


METHODS_MORE = pytest.mark.parametrize(
    "method",
    [
        CASES["sst-residual"],
        CASES["sst-bf16"],
        CASES["galore-right"],
        LoRA(4, alpha=3.0, scaling="rslora"),
        ReLoRA(4, merge_every=3, warm_start=5),
    ],
    ids=["sst-residual", "sst-bf16", "galore-right", "rslora", "warm-start"],
)


def check(tmp_path, method, task):
    merged = trained(tmp_path / "run", method, task)
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.directory == tmp_path / "out"
    assert (done.step, done.difference < 1e-4 * done.largest) == (12, True)
    model = loaded(tmp_path / "out")
    agree(merged, model)
    plain = task.build_model()
    assert list(model.state_dict()) == list(plain.state_dict())
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        written = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    tied = {"lm_head.weight"} if plain.config.tie_word_embeddings else set()
    assert written == set(plain.state_dict()) - tied
    assert done.tensors == len(written)
    assert not list(tmp_path.glob(".partial-*"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the cat sat").input_ids == task.corpus.tokenizer("the cat sat").input_ids
    assert tokenizer.decode(tokenizer("the cat sat").input_ids) == "the cat sat"


@every_default_matrix
def test_every_method_merges_into_an_ordinary_llama(tmp_path, method):
    check(tmp_path, method, make_task())


@METHODS_MORE
def test_so_do_their_variants(tmp_path, method):
    check(tmp_path, method, make_task())


@every_default_matrix
def test_an_opt_with_biases_and_tied_embeddings_stays_tied(tmp_path, method):
    check(tmp_path, method, make_task("opt-125m", OPT))
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_excluded_layers_stay_as_they_were(tmp_path):
    task = make_task()
    run(tmp_path / "run", SST(4, resample_every=3), task, exclude="lm_head,down_proj")
    export(tmp_path / "run", tmp_path / "out")
    found = last(tmp_path / "run")
    before = load_file(found.path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(loaded(tmp_path / "out").state_dict()[name], before[name])


def test_shards_have_an_index_and_load(tmp_path):
    merged = trained(tmp_path / "run", SST(4, resample_every=3))
    export(tmp_path / "run", tmp_path / "out", shard_size="30KB")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert set(index["weight_map"]) == set(merged.state_dict())
    for shard in shards:
        expected = {name for name, file in index["weight_map"].items() if file == shard}
        assert set(load_file(tmp_path / "out" / shard)) == expected
    agree(merged, loaded(tmp_path / "out"))


@pytest.mark.parametrize("method", [SST(4, resample_every=3), GaLore(4, refresh_every=3), LoRA(4)])
def test_a_bfloat16_model_comes_out_in_bfloat16(tmp_path, method):
    start = make_task().build_model().to(torch.bfloat16)
    start.save_pretrained(tmp_path / "start")
    task = make_task(str(tmp_path / "start"), {})
    built = {p.dtype for p in task.build_model().parameters()}
    merged = trained(tmp_path / "run", method, task)
    export(tmp_path / "run", tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == built
    agree(merged, model, tolerance=1e-5 if built == {torch.float32} else 0.05)


def test_matrices_are_built_one_at_a_time(tmp_path, monkeypatch):
    """Nothing but the layer at hand is ever in memory in factored form; the source is mapped."""
    run(tmp_path / "run", SST(4, resample_every=3))
    real, seen = export_module.plain_tensor, []

    def watched(source, name, layers):
        tensor = real(source, name, layers)
        seen.append(name)
        resident = [p for layer in layers.values() for p in layer.state_dict().values()]
        assert all(p.is_meta for p in resident)
        return tensor

    monkeypatch.setattr(export_module, "plain_tensor", watched)
    export(tmp_path / "run", tmp_path / "out")
    assert len(seen) == len(set(seen)) == 12


def test_a_checkpoint_whose_logits_disagree_is_not_kept(tmp_path, monkeypatch):
    run(tmp_path / "run", LoRA(4))
    real = export_module.plain_tensor

    def wrong(source, name, layers):
        return real(source, name, layers) + (0.1 if name.endswith("up_proj.weight") else 0.0)

    monkeypatch.setattr(export_module, "plain_tensor", wrong)
    with pytest.raises(RunError, match=r"logits differ .* nothing was kept at"):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nan_logits_do_not_pass_for_agreement(tmp_path, monkeypatch):
    run(tmp_path / "run", LoRA(4))
    real = export_module.plain_tensor
    monkeypatch.setattr(export_module, "plain_tensor", lambda *a: real(*a) * float("nan"))
    with pytest.raises(RunError, match="by nan"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_merge_leaves_nothing(tmp_path, monkeypatch):
    run(tmp_path / "run", LoRA(4))

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_compare", stop)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    run(tmp_path / "run", LoRA(4))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", full)
    with pytest.raises(RunError, match=r"could not write .*out: .*No space left on device"):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_newest_intact_checkpoint_is_taken(tmp_path):
    run(tmp_path / "run", LoRA(4), checkpoint_every=5)
    (tmp_path / "run" / "checkpoints" / "step-00000012" / "manifest.json").unlink()
    assert export(tmp_path / "run", tmp_path / "out").step == 10
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"no intact checkpoint \(.*missing"):
        export(tmp_path / "run", tmp_path / "other")


def test_what_is_no_run_or_already_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nothing is no run of spectrain"):
        export(tmp_path / "nothing", tmp_path / "out")
    write_json(tmp_path / "config.json", {"format": 1, "kind": "comparison"})
    with pytest.raises(UsageError, match="is no run of spectrain"):
        export(tmp_path, tmp_path / "out")
    run(tmp_path / "run", LoRA(4))
    with pytest.raises(UsageError, match=r"run exists already"):
        export(tmp_path / "run", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "run", tmp_path / "empty").tensors == 12
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file exists already"):
        export(tmp_path / "run", tmp_path / "file")
    with pytest.raises(RunError, match="could not write"):
        export(tmp_path / "run", tmp_path / "file" / "deeper")


def test_a_run_without_its_tokenizer_says_so(tmp_path):
    run(tmp_path / "run", LoRA(4))
    (tmp_path / "run" / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="incomplete: its folder tokenizer is missing"):
        export(tmp_path / "run", tmp_path / "out")


def test_a_checkpoint_of_another_method_does_not_fit(tmp_path):
    """Names and shapes are checked, not assumed."""
    run(tmp_path / "run", SST(4, resample_every=3))
    found = last(tmp_path / "run")
    other = dataclasses.replace(SST(4, resample_every=3), rank=3).settings()
    state = found.state()
    state["phases"] = [{"method": other, "steps": 12}]
    write_json(found.path / "state.json", state)
    manifest = read_json(found.path / "manifest.json")
    content = (found.path / "state.json").read_bytes()
    manifest["files"]["state.json"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(found.path / "manifest.json", manifest)
    with pytest.raises(RunError, match="does not fit"):
        export(tmp_path / "run", tmp_path / "out")
