"""Factored folders: every task's, loaded bit for bit; refused by others; damaged ones; the command."""

from __future__ import annotations

import json
import re

import pytest
import test_graph_task
import test_image_task
import test_translate_task
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny import last, make_task, run
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from spectrain import SST
from spectrain.cli.main import main
from spectrain.cli.translate import translate
from spectrain.errors import RunError, UsageError
from spectrain.pruning import Pruning
from spectrain.runs import export as export_module
from spectrain.runs.export import export
from spectrain.runs.factored import form_of
from spectrain.runs.files import read_json, write_json
from spectrain.runs.inspection import inspect
from spectrain.tasks.factored import FactoredLinear
from spectrain.tasks.graph.plain import load_network as load_graph_network
from spectrain.tasks.image.plain import load_network as load_image_network
from spectrain.tasks.lm.plain import load_factored
from spectrain.tasks.translate.plain import load_translator

HALF = Pruning(0.5)
data = test_translate_task.data


@pytest.fixture(autouse=True, scope="module")
def _without_plans():
    """Planning takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectrain.runs.memory.plan", test_translate_task.no_plan)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a factored folder of it."""
    folder = tmp_path_factory.mktemp("lm")
    run(folder / "run", SST(4, resample_every=3), make_task(), eval_every=0)
    export(folder / "run", folder / "thin", pruning=HALF, factored=True)
    return folder


@pytest.fixture
def thin(trained, tmp_path):
    """A copy of it, to be damaged."""
    for path in (trained / "thin").iterdir():
        (tmp_path / "thin").mkdir(exist_ok=True)
        (tmp_path / "thin" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "thin"


def factored_layers(model):
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, FactoredLinear)}


# --- every task -------------------------------------------------------------------------------------


def check(folder, load, name):
    """Dense and factored folders of a run compute the same, and the factored one is what it says."""
    done = export(folder / "run", folder / "thin", pruning=HALF, factored=True)
    export(folder / "run", folder / "dense", pruning=HALF)
    export(folder / "run", folder / "plain")
    form = form_of({"task": name})
    assert done.loader == form.FACTORED_LOADER
    probe = load_file(last(folder / "run").path / "probe.safetensors")["input"]
    found, expected, before = (
        form.outputs(folder / kind, probe) for kind in ("thin", "dense", "plain")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-3
    assert done.difference > 1e-3
    model = load(folder / "thin")
    thin = {layer.name: layer for layer in done.pruned.layers if layer.is_thin}
    layers = factored_layers(model)
    assert layers.keys() == thin.keys()
    assert layers
    for layer_name, layer in layers.items():
        assert layer.left.shape[1] == layer.right.shape[0] == thin[layer_name].rank
        assert (layer.out_features, layer.in_features) == thin[layer_name].shape
    state = model.state_dict()
    written = load_file(folder / "thin" / "factored.safetensors")
    assert all(torch.equal(written[key], state[key]) for key in written)
    plain = load_file(folder / "plain" / "model.safetensors")
    touched = {f"{layer.name}.weight" for layer in done.pruned.layers}
    assert all(torch.equal(plain[key], written[key]) for key in plain.keys() - touched)
    assert not any("head" in key for key in touched)


def test_language_models(trained, tmp_path):
    (tmp_path / "run").symlink_to(trained / "run")
    check(tmp_path, load_factored, "lm")


@pytest.mark.parametrize(("model", "predict"), [("hybonet", "nodes"), ("gcn", "links")])
def test_graph_networks(tmp_path, model, predict):
    more = {"activation": "relu"} if model == "gcn" else {}
    task = test_graph_task.make_task(predict=predict, model=model, **more)
    test_graph_task.run(tmp_path / "run", task=task, steps=8)
    check(tmp_path, load_graph_network, "graph")


@test_image_task.both
def test_image_networks(tmp_path, model):
    task = test_image_task.make_task(**model)
    test_image_task.run(tmp_path / "run", task=task, steps=8)
    check(tmp_path, load_image_network, "image")


@test_translate_task.every_geometry
def test_translators_which_the_command_uses(tmp_path, data, geometry):
    task = test_translate_task.make_task(data, geometry=geometry)
    test_translate_task.run(tmp_path / "run", task, steps=8)
    check(tmp_path, lambda folder: load_translator(folder).model, "translate")
    texts = {
        kind: CliRunner().invoke(translate, [str(tmp_path / kind)], input="zwei drei\n").output
        for kind in ("dense", "thin")
    }
    assert texts["dense"] == texts["thin"]


# --- language models --------------------------------------------------------------------------------


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(16)[None], use_cache=False).logits.double()


def test_files_are_the_same_again_and_shards_hold_the_same(trained, tmp_path):
    export(trained / "run", tmp_path / "again", pruning=HALF, factored=True)
    for path in (trained / "thin").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    done = export(trained / "run", tmp_path / "shards", "8KB", pruning=HALF, factored=True)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3
    whole = load_file(trained / "thin" / "factored.safetensors")
    parts = {name: t for shard in shards for name, t in load_file(shard).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert done.tensors == len(whole)
    assert torch.equal(
        logits(load_factored(tmp_path / "shards")), logits(load_factored(trained / "thin"))
    )


def test_a_factored_model_can_be_used_and_trained_further(trained):
    model = load_factored(str(trained / "thin"))
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.generate(torch.arange(4)[None], max_new_tokens=3, do_sample=False).shape == (1, 7)
    assert "rank=" in str(model)
    for layer in factored_layers(model).values():
        torch.testing.assert_close(layer.weight, layer.left @ layer.right)
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_half_precision_stays_what_it_is(tmp_path):
    model = make_task().build_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "start")
    export(tmp_path / "start", tmp_path / "thin", pruning=HALF, factored=True)
    export(tmp_path / "start", tmp_path / "dense", pruning=HALF)
    thin = load_factored(tmp_path / "thin")
    assert {p.dtype for p in thin.parameters()} == {torch.bfloat16}
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")
    a, b = logits(thin.double()), logits(dense.double())
    assert (a - b).norm() < 0.02 * b.norm()


def test_layers_below_the_threshold_of_all_vanish_and_still_load(tmp_path):
    model = make_task().build_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1e-3
    model.save_pretrained(tmp_path / "start")
    pruning = Pruning(0.5, "all")
    done = export(tmp_path / "start", tmp_path / "thin", pruning=pruning, factored=True)
    assert [layer.rank for layer in done.pruned.layers if "up_proj" in layer.name] == [0]
    export(tmp_path / "start", tmp_path / "dense", pruning=pruning)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(load_factored(tmp_path / "thin")), logits(dense))


def test_it_is_inspected_as_the_matrices_it_stands_for(trained, tmp_path):
    export(trained / "run", tmp_path / "dense", pruning=HALF)
    thin, dense = inspect(trained / "thin"), inspect(tmp_path / "dense")
    assert [layer.name for layer in thin.layers] == [layer.name for layer in dense.layers]
    assert (
        max(
            layer.difference.relative_change
            for layer in inspect(trained / "thin", tmp_path / "dense").layers
        )
        < 1e-5
    )


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, LlamaForCausalLM])
def test_plain_transformers_refuses_it_with_a_sentence(trained, loader):
    with pytest.raises(
        ValueError, match=r"load it with spectrain\.tasks\.lm\.plain\.load_factored"
    ):
        loader.from_pretrained(trained / "thin")


def test_what_transformers_would_spoil_is_refused(trained, tmp_path):
    with pytest.raises(UsageError, match="cannot be saved as a transformers checkpoint"):
        load_factored(trained / "thin").save_pretrained(tmp_path / "x")
    make_task().build_model().save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"has no factored\.json: load it with transformers"):
        load_factored(tmp_path / "plain")
    with pytest.raises(UsageError, match="it needs a pruning"):
        export(trained / "run", tmp_path / "x", factored=True)
    with pytest.raises(UsageError, match="is factored already"):
        export(trained / "thin", tmp_path / "x", pruning=HALF)
    with pytest.raises(UsageError, match="plain checkpoint, which only --prune takes"):
        export(tmp_path / "plain", tmp_path / "x")
    with pytest.raises(UsageError, match=r"--checkpoint 3: .* no run"):
        export(tmp_path / "plain", tmp_path / "x", which=3, pruning=HALF)
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    first = next(name for name in tensors if "q_proj" in name)
    for other in ({}, {first: tensors[first].to(torch.int8)}, {first: tensors[first][:3].clone()}):
        rest = {name: tensor for name, tensor in tensors.items() if name != first} | other
        save_file(rest, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UsageError, match=rf"has no {re.escape(first)} of 32 × 32"):
            export(tmp_path / "plain", tmp_path / "x", pruning=HALF)
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="damaged or no safetensors file"):
        export(tmp_path / "plain", tmp_path / "x", pruning=HALF)
    config = tmp_path / "plain" / "config.json"
    config.rename(tmp_path / "config.json")
    config.symlink_to(tmp_path / "config.json")
    with pytest.raises(UsageError, match="holds links"):
        export(tmp_path / "plain", tmp_path / "x", pruning=HALF)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "plain"]


DESCRIPTIONS = {
    "nonsense": (RunError, "cannot be read"),
    "[]": (RunError, "is damaged"),
    '{"format": 1}': (RunError, "is damaged"),
    '{"format": 1, "ranks": {"a": -1}}': (RunError, "is damaged"),
    '{"format": 1, "ranks": {"a": true}}': (RunError, "is damaged"),
    '{"format": 2, "ranks": {}}': (UsageError, "is of format 2, and this version reads format 1"),
    '{"format": 1, "ranks": {"a": 1}}': (RunError, "names a, which is no linear layer"),
    '{"format": 1, "ranks": {"model.norm": 1}}': (RunError, "which is no linear layer"),
    '{"format": 1, "ranks": {"lm_head": 99}}': (RunError, "rank 99, which exceeds its sides"),
    '{"format": 1, "ranks": {}}': (RunError, "is not as its description says"),
}


@pytest.mark.parametrize("content", DESCRIPTIONS)
def test_damaged_descriptions_are_refused(thin, content):
    (thin / "factored.json").write_text(content)
    error, said = DESCRIPTIONS[content]
    with pytest.raises(error, match=said):
        load_factored(thin)


def test_damaged_weights_are_refused(thin):
    file = thin / "factored.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    first = next(name for name in tensors if name.endswith(".left"))
    del tensors[first]
    save_file(tensors, file, {"format": "pt"})
    for read in (load_factored, inspect):
        with pytest.raises(RunError, match=re.escape(first)):
            read(thin)
    ranks = read_json(thin / "factored.json")["ranks"]
    changed = {name: rank + (name == first.removesuffix(".left")) for name, rank in ranks.items()}
    file.write_bytes(whole)
    write_json(thin / "factored.json", {"format": 1, "ranks": changed})
    with pytest.raises(RunError, match="cannot be loaded"):
        load_factored(thin)
    write_json(thin / "factored.json", {"format": 1, "ranks": ranks})
    for content in (b"", whole[:-9], whole[:40]):
        file.write_bytes(content)
        with pytest.raises(RunError, match="cannot be loaded"):
            load_factored(thin)
    file.unlink()
    with pytest.raises(RunError, match="cannot be loaded"):
        load_factored(thin)


def test_other_tasks_check_the_same(tmp_path):
    task = test_image_task.make_task(**test_image_task.MLP)
    test_image_task.run(tmp_path / "run", task=task, steps=4)
    export(tmp_path / "run", tmp_path / "thin", pruning=HALF, factored=True)
    description = tmp_path / "thin" / "factored.json"
    content = read_json(description)
    layer = next(iter(content["ranks"]))
    for ranks in ({**content["ranks"], layer: 1}, {}):
        description.write_text(json.dumps({"format": 1, "ranks": ranks}))
        with pytest.raises(RunError, match="cannot be loaded"):
            load_image_network(tmp_path / "thin")


def test_an_interrupted_pruning_leaves_nothing(trained, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("spectrain.runs.prune.truncated", stop)
    with pytest.raises(KeyboardInterrupt):
        export(trained / "run", tmp_path / "out", pruning=HALF)
    monkeypatch.setattr(export_module, "_compare", lambda *a: (float("nan"), 1.0))
    with pytest.raises(RunError, match="by nan"):
        export(trained / "run", tmp_path / "out", pruning=HALF, factored=True)
    assert not list(tmp_path.iterdir())


# --- the command ------------------------------------------------------------------------------------


def command(*arguments):
    """The exit code of `spectrain merge …`."""
    try:
        main(["merge", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_command_says_what_it_did(trained, tmp_path, capsys):
    assert command(trained / "run", "--out", tmp_path / "a", "--prune", "0.5", "--verbose") == 0
    out = capsys.readouterr().out
    assert "Pruned to 0.5 of the sum of singular values, layer by layer: 7 layers, ranks" in out
    assert len(re.findall(r"_proj +\d+×\d+ +\d+ +\d+ +0\.\d+ +0\.\d+ +dense", out)) == 7
    assert "with --factored these layers would have 0." in out
    assert "AutoModelForCausalLM.from_pretrained" in out
    more = ("--prune", "0.5", "--factored", "--prune-by", "all")
    assert command(trained / "run", "--out", tmp_path / "b", *more) == 0
    out = capsys.readouterr().out
    assert "by one threshold for all layers" in out
    assert "_proj  " not in out
    size = sum(t.nbytes for t in load_file(tmp_path / "b" / "factored.safetensors").values())
    assert f" {size:,} bytes instead of " in out
    assert f"Load it with spectrain.tasks.lm.plain.load_factored('{tmp_path / 'b'}')" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    {
        "--prune 0": "give the share of the singular values' sum",
        "--prune 1.5": "above 0 and up to 1",
        "--prune 90": "(90 % is 0.9)",
        "--prune nan": "--prune nan: give the share",
        "--prune x": "is not a valid float",
        "--prune 0.5 --prune-by row": "--prune-by row: give layer or all",
        "--prune-by all": "--prune-by belongs to --prune: give --prune SHARE",
        "--factored": "--factored belongs to --prune: give --prune SHARE",
        "--verbose": "--verbose belongs to --prune",
    }.items(),
)
def test_wrong_flags_are_refused_before_any_work(tmp_path, capsys, flags, said):
    assert command(tmp_path / "nothing", "--out", tmp_path / "x", *flags.split()) == 2
    err = capsys.readouterr().err
    assert err.count("Error: ") == 1
    assert said in err
