"""`spectrain inspect`: any checkpoint, one matrix at a time, the same numbers whatever its form."""

from __future__ import annotations

import json
import math
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import causal_model, last, run

from spectrain import SST, GaLore, LoRA
from spectrain.cli.main import main
from spectrain.diagnostics import measure
from spectrain.errors import RunError, UsageError
from spectrain.runs import inspection as inspection_module
from spectrain.runs import inspection_plot
from spectrain.runs.export import export
from spectrain.runs.inspection import inspect
from spectrain.runs.weights import Weights, open_weights


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(seed=0, blocks=2):
    """Blocks of two matrices and a norm, an embedding, a convolution, positions."""
    tensors = {
        "embed.weight": draw(20, 6, seed=seed),
        "stem.weight": draw(4, 3, 2, 2, seed=seed + 1),
        "position_ids": torch.arange(20).reshape(1, 20),
    }
    for i in range(blocks):
        tensors[f"layers.{i}.up.weight"] = draw(9, 6, seed=seed + 10 * i + 2)
        tensors[f"layers.{i}.down.weight"] = draw(6, 9, seed=seed + 10 * i + 3)
        tensors[f"layers.{i}.norm.weight"] = torch.ones(6)
    return tensors


def saved(path, tensors):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture
def command(capsys):
    """Runs `spectrain inspect …` in this process; (exit code, output, errors)."""

    def call(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main(["inspect", *(str(a) for a in arguments)])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of SST with two checkpoints, and the newest one merged."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder / "run", SST(4, resample_every=3), checkpoint_every=6)
    export(folder / "run", folder / "merged")
    return folder


def test_a_folder_is_measured_matrix_by_matrix(tmp_path):
    tensors = weights(blocks=11)
    found = inspect(saved(tmp_path / "a", tensors))
    names = [layer.name for layer in found.layers]
    assert names[:2] == ["embed.weight", "layers.0.down.weight"]
    assert names.index("layers.10.up.weight") == names.index("layers.9.up.weight") + 2
    assert set(names) == {n for n, t in tensors.items() if t.ndim > 1} - {"position_ids"}
    for layer in found.layers:
        matrix = tensors[layer.name].flatten(1)
        assert layer.measures == measure(matrix)
        s = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        assert layer.measures.singular_values == pytest.approx(s, rel=1e-6)
        assert layer.measures.frobenius_norm == pytest.approx(float(matrix.norm()), rel=1e-6)
    assert found.numbers == sum(tensors[name].numel() for name in names)
    assert (found.vectors, found.vector_numbers) == (11, 66)
    assert {layer.kind for layer in found.layers if "up" in layer.name} == {"layers.*.up.weight"}


def test_shards_a_file_and_half_precision_give_the_same(tmp_path):
    tensors = {n: t.to(torch.bfloat16) for n, t in weights().items() if t.is_floating_point()}
    whole = inspect(saved(tmp_path / "a", tensors)).layers
    assert inspect(tmp_path / "a" / "model.safetensors").layers == whole
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "other.safetensors")
    assert inspect(tmp_path / "a").layers == whole
    shards, places = tmp_path / "b", {}
    shards.mkdir()
    for i, (name, tensor) in enumerate(tensors.items()):
        places[name] = f"model-{i}.safetensors"
        save_file({name: tensor}, shards / places[name])
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert inspect(shards).layers == whole
    (shards / "model-0.safetensors").unlink()
    with pytest.raises(RunError, match=r"names 'model-0.safetensors', which is not in its folder"):
        inspect(shards)


def test_what_transformers_writes_is_read(tmp_path):
    model = causal_model(tied=True)
    model.save_pretrained(tmp_path / "a")
    found = inspect(tmp_path / "a")
    assert len(found.layers) == 8  # the embedding, which is the head, and seven of the block
    expected = {n: measure(p) for n, p in model.named_parameters() if p.ndim > 1}
    assert {layer.name: layer.measures for layer in found.layers} == expected


@pytest.mark.parametrize("method", [SST(4, resample_every=3), LoRA(4), GaLore(4, refresh_every=3)])
def test_a_run_is_measured_as_its_merged_model(tmp_path, method):
    run(tmp_path / "run", method)
    export(tmp_path / "run", tmp_path / "merged")
    ours, plain = inspect(tmp_path / "run"), inspect(tmp_path / "merged")
    assert ours.checkpoint == f"{tmp_path / 'run'}, step 12"
    assert ours.layers == plain.layers
    change = inspect(tmp_path / "run", tmp_path / "merged")
    assert all(layer.difference.update.spectral_norm == 0 for layer in change.layers)


def test_one_checkpoint_of_a_run_can_be_named(trained):
    found = last(trained / "run").path
    assert found.name == "step-00000012"
    assert inspect(found).layers == inspect(trained / "run").layers
    earlier = inspect(trained / "run", found.with_name("step-00000006"))
    assert earlier.against == f"{trained / 'run'}, step 6"
    assert all(layer.difference.relative_change > 0 for layer in earlier.layers)
    with pytest.raises(UsageError, match="does not exist"):
        inspect(found.with_name("step-00000007"))


def test_one_matrix_at_a_time_is_in_memory(tmp_path, monkeypatch, trained):
    """Of each checkpoint: when one is read, what was read before is gone."""
    alive: dict[int, weakref.ref] = {}
    read = Weights.read
    most = []

    def watched(self, name):
        most.append(sum(ref() is not None for ref in alive.values()))
        tensor = read(self, name)
        alive[len(alive)] = weakref.ref(tensor)
        return tensor

    monkeypatch.setattr(Weights, "read", watched)
    a, b = saved(tmp_path / "a", weights(blocks=4)), saved(tmp_path / "b", weights(1, blocks=4))
    inspect(a)
    inspect(trained / "run")
    assert max(most) == 0
    inspect(a, b)
    assert max(most) == 1  # the other checkpoint's of the same name
    assert len(most) > 20


def test_change_is_measured_against_another_checkpoint(tmp_path):
    old, new = weights(), weights()
    B, A = draw(9, 1, seed=5), draw(1, 6, seed=6)
    new["layers.0.up.weight"] = old["layers.0.up.weight"] + B @ A
    new["layers.1.down.weight"] = 1.5 * old["layers.1.down.weight"]
    new["more.weight"] = draw(3, 3)
    found = inspect(saved(tmp_path / "new", new), saved(tmp_path / "old", old), rank=2)
    layers = {layer.name: layer for layer in found.layers}
    up = layers["layers.0.up.weight"].difference
    assert up.update.effective_rank == pytest.approx(1, abs=1e-4)
    size = float((B @ A).norm() / old["layers.0.up.weight"].norm())
    assert up.relative_change == pytest.approx(size, rel=1e-5)
    down = layers["layers.1.down.weight"].difference
    assert (down.relative_change, down.norm_change) == pytest.approx((0.5, 0.5))
    assert len(down.left_angles) == 2
    assert max(down.left_angles + down.right_angles) < 1e-6
    assert layers["embed.weight"].difference.relative_change == 0
    assert (layers["more.weight"].difference, found.unmatched) == (None, ["more.weight"])


def test_layers_are_selected_by_a_regular_expression(tmp_path):
    a = saved(tmp_path / "a", weights())
    found = inspect(a, layers=r"\.1\.(up|norm)")
    assert [layer.name for layer in found.layers] == ["layers.1.up.weight"]
    assert found.vectors == 1
    with pytest.raises(UsageError, match="no matrix whose name has 'nothing' among its 9 tensors"):
        inspect(a, layers="nothing")
    with pytest.raises(UsageError, match="--layers a\\( is no regular expression"):
        inspect(a, layers="a(")


def test_what_is_printed_and_written(tmp_path, command):
    a, b = saved(tmp_path / "a", weights()), saved(tmp_path / "b", weights(1))
    code, out, _ = command(
        a, "--against", b, "--json", tmp_path / "x.json", "--plot", tmp_path / "x.png"
    )
    assert code == 0
    assert "layers.0" in out
    assert "up" in out
    assert "change since" in out
    assert "6 matrices with 384 numbers, embeddings included" in " ".join(out.split())
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert content["totals"] == {
        "matrices": 6,
        "numbers": 384,
        "vectors_left_out": 2,
        "numbers_left_out": 12,
    }
    first = content["layers"][0]
    assert first["kind"] == first["name"] == "embed.weight"
    assert len(first["measures"]["singular_values"]) == 6
    assert len(first["difference"]["left_angles"]) == 6


def test_many_matrices_are_grouped_by_kind(tmp_path, command):
    a = saved(tmp_path / "a", weights(blocks=12))
    code, out, _ = command(a)
    assert code == 0
    assert "layers.*" in out
    assert "layers.11" not in out.split("•")[0]
    assert "medians" in out
    code, out, _ = command(a, "--all")
    assert "layers.11" in out
    assert "medians" not in out


def test_parts_of_one_name_in_encoder_and_decoder_stay_apart(tmp_path):
    sides = {f"{s}.layers.{i}.q.weight": draw(4, 4) for s in ("encoder", "decoder") for i in (0, 1)}
    kinds = inspection_plot._kinds(inspect(saved(tmp_path / "a", sides)))
    assert {label: len(layers) for label, layers in kinds.items()} == {
        "decoder.layers.*.q 4×4": 2,
        "encoder.layers.*.q 4×4": 2,
    }


def test_zero_matrices_are_shown_and_infinite_ratios_are_null(tmp_path, command):
    a = saved(tmp_path / "a", {"x.weight": torch.eye(12), "y.weight": torch.zeros(3, 3)})
    b = saved(tmp_path / "b", {"x.weight": torch.zeros(12, 12), "y.weight": torch.zeros(3, 3)})
    code, out, _ = command(
        a, "--against", b, "--json", tmp_path / "j", "--plot", tmp_path / "p.png"
    )
    assert code == 0
    assert "∞" in out
    content = json.loads((tmp_path / "j").read_text())
    assert content["layers"][0]["difference"]["relative_change"] is None
    assert command(a, "--layers", "^y", "--plot", tmp_path / "p.png")[0] == 0


def test_shapes_that_differ_are_named(tmp_path):
    a = saved(tmp_path / "a", weights())
    other = weights()
    other["layers.1.up.weight"] = draw(8, 6)
    other["layers.1.down.weight"] = draw(6, 8)
    with pytest.raises(
        UsageError, match=r"layers\.1\.down\.weight is 6 × 9 in .*a and 6 × 8 in .*b:"
    ):
        inspect(a, saved(tmp_path / "b", other))
    strange = saved(tmp_path / "c", {"other.weight": draw(3, 3)})
    with pytest.raises(UsageError, match=r"has none of the matrices .*the first is embed\.weight"):
        inspect(a, strange)


def test_non_finite_values_are_named_with_their_checkpoint(tmp_path):
    a = saved(tmp_path / "a", weights())
    broken = weights()
    broken["layers.1.up.weight"][2, 3] = math.nan
    b = saved(tmp_path / "b", broken)
    for arguments in ((b,), (a, b), (b, a)):
        with pytest.raises(RunError, match=r"layers\.1\.up\.weight of \S*b has NaN or infinite"):
            inspect(*arguments)
    assert len(inspect(b, layers="down").layers) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path, dtype):
    quantised = {**weights(), "layers.0.up.weight": torch.ones(9, 6).to(dtype)}
    a, b = saved(tmp_path / "a", weights()), saved(tmp_path / "b", quantised)
    for arguments in ((b,), (a, b)):
        with pytest.raises(
            UsageError, match=r"layers\.0\.up\.weight of \S*b is stored as .*dequantised"
        ):
            inspect(*arguments)
    assert len(inspect(b, layers="down").layers) == 2


def test_damage_is_said(tmp_path):
    a = saved(tmp_path / "a", weights())
    file = a / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", b"nonsense", whole[:-7], whole[:50]):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"model\.safetensors is damaged or no safetensors file"):
            inspect(a)
    file.unlink()
    index = a / "model.safetensors.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        with pytest.raises(RunError, match="damaged"):
            inspect(a)
    (tmp_path / "secret.safetensors").write_bytes(whole)
    index.write_text(json.dumps({"weight_map": {"embed.weight": "../secret.safetensors"}}))
    with pytest.raises(RunError, match="not in its folder"):
        inspect(a)


def test_a_file_that_is_lost_on_the_way_is_said(tmp_path):
    a = saved(tmp_path / "a", weights())
    opened = open_weights(a)
    (a / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"embed\.weight of .*a cannot be read"):
        opened.read("embed.weight")


def test_what_is_no_checkpoint_is_refused(tmp_path, trained):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    two = saved(tmp_path / "two", weights())
    (two / "model.safetensors").rename(two / "a.safetensors")
    (two / "b.safetensors").write_bytes((two / "a.safetensors").read_bytes())
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    (comparison / "config.json").write_text('{"kind": "comparison"}')
    for path, message in {
        tmp_path / "nothing": "does not exist: give a folder",
        tmp_path / "empty": "holds no checkpoint: give a folder",
        tmp_path / "text.txt": "is no .safetensors file",
        tmp_path / "pickled": "pickled weights are not read",
        two: "2 .safetensors files and no index",
        comparison: "is a comparison",
    }.items():
        with pytest.raises(UsageError, match=message):
            inspect(path)
    with pytest.raises(UsageError, match="has no matrix among its 1 tensors"):
        inspect(saved(tmp_path / "vector", {"norm.weight": torch.ones(4)}))
    file = last(trained / "run").path / "model.safetensors"
    assert len(load_file(file)) > 12  # as a file it is what it is: factors


def test_refusals_come_before_any_work(tmp_path, command, monkeypatch):
    a = saved(tmp_path / "a", weights())
    monkeypatch.setattr(inspection_module, "inspect", lambda *given: pytest.fail("not refused"))
    for arguments, message in {
        ("--json", tmp_path / "no" / "x.json"): "give a file in a folder that exists",
        ("--json", tmp_path): "give a file in a folder that exists",
        ("--plot", tmp_path / "x.svg"): "ends in .png",
        ("--rank", "0"): "is not in the range",
    }.items():
        code, out, err = command(a, *arguments)
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())


def test_exit_codes_and_sentences_of_the_command(tmp_path, command):
    code, out, err = command(tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    assert command(tmp_path / "x.safetensors")[0] == 1
