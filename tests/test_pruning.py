"""Pruned matrices and models: planted spectra, brute force, perplexity of the truncation done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OPT, make_task, run
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from spectrain import SST, FullRank
from spectrain.diagnostics import singular_values
from spectrain.errors import NonFiniteError, RunError, UsageError
from spectrain.pruning import Pruning, relative_change, thin_factors, thin_is_smaller, truncated
from spectrain.runs import export as export_module
from spectrain.runs.export import export
from spectrain.tasks.lm.evaluate import evaluate
from spectrain.tasks.lm.plain import load_factored


def planted(m, n, s, seed=0):
    """A float64 matrix (m, n) with the singular values s, and no others."""
    draw = np.random.default_rng(seed)
    u, v = (np.linalg.qr(draw.standard_normal((side, len(s))))[0] for side in (m, n))
    return torch.from_numpy(u * np.array(s) @ v.T)


SHAPES = pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)], ids=["tall", "wide", "square"])


# --- which values stay ----------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize(
    ("share", "rank"),
    [(1, 4), (0.99, 4), (0.9, 3), (0.9001, 4), (0.7, 2), (0.71, 3), (0.4, 1), (1e-9, 1)],
)
def test_planted_spectra_keep_the_ranks_that_they_must(shape, share, rank):
    W = planted(*shape, [4.0, 3.0, 2.0, 1.0])  # their sums: 4, 7, 9, 10
    s = singular_values(W)
    assert Pruning(share).ranks({"a": s}) == {"a": rank}
    assert Pruning(share, "all").ranks({"a": s}) == {"a": rank}
    left_out = [4.0, 3.0, 2.0, 1.0][rank:]
    expected = math.sqrt(sum(x * x for x in left_out) / 30)
    assert relative_change(s, rank) == pytest.approx(expected, abs=1e-7)
    found = truncated(W, rank)
    assert torch.linalg.matrix_rank(found) == rank
    assert float((W - found).norm() / W.norm()) == pytest.approx(expected, abs=1e-7)


def brute_force(spectra, share):
    """All thresholds tried, the largest first."""
    total = sum(s.sum() for s in spectra)
    for threshold in sorted(np.concatenate(spectra), reverse=True):
        if sum(s[s >= threshold].sum() for s in spectra) >= share * total * (1 - 1e-12):
            return [int((s >= threshold).sum()) for s in spectra]
    raise AssertionError


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_one_threshold_for_all_layers_is_that_of_brute_force(share, seed):
    draw = np.random.default_rng(seed)
    spectra = [np.sort(draw.gamma(1, scale, k))[::-1] for scale, k in ((1, 20), (5, 8), (0.1, 15))]
    spectra[0][7:10] = spectra[0][7]  # equal ones stay or go together
    given = {str(i): torch.from_numpy(s.copy()) for i, s in enumerate(spectra)}
    assert list(Pruning(share, "all").ranks(given).values()) == brute_force(spectra, share)
    by_layer = [brute_force([s], share)[0] for s in spectra[1:]]
    assert list(Pruning(share).ranks(given).values())[1:] == by_layer


def test_zeros_are_never_kept_and_zero_matrices_stay():
    zeros, some = torch.zeros(4).double(), torch.tensor([1.0, 0.5, 0.0]).double()
    for by in ("layer", "all"):
        assert Pruning(1, by).ranks({"z": zeros, "s": some}) == {"z": 0, "s": 2}
        assert Pruning(0.5, by).ranks({"z": zeros}) == {"z": 0}
    Z = torch.zeros(3, 5)
    assert torch.equal(truncated(Z, 0), Z)
    assert relative_change(zeros, 0) == 0
    left, right = thin_factors(Z, 0)
    assert (left.shape, right.shape) == ((3, 0), (0, 5))


def test_a_layer_of_small_values_may_lose_all_of_them():
    W = planted(6, 5, [2.0, 1.0])
    assert not truncated(W, 0).any()
    assert relative_change(singular_values(W), 0) == 1


# --- what is left ---------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_truncation_and_factors_are_those_of_numpy(shape, dtype):
    torch.manual_seed(1)
    W = torch.randn(shape, dtype=torch.float64).to(dtype)
    u, s, v = np.linalg.svd(W.double().numpy(), full_matrices=False)
    expected = torch.from_numpy(u[:, :3] * s[:3] @ v[:3])
    found, (left, right) = truncated(W, 3), thin_factors(W, 3)
    assert (found.dtype, left.dtype, right.dtype) == (dtype,) * 3
    eps = torch.finfo(dtype).eps
    assert (found.double() - expected).abs().max() <= max(eps, 1e-12) * s[0]
    assert (left.double() @ right.double() - expected).norm() <= max(eps, 1e-12) * s[0] * 2
    torch.testing.assert_close(
        left.double().norm(dim=0), torch.from_numpy(s[:3]).sqrt(), rtol=4 * eps, atol=0
    )
    assert truncated(W, min(shape)) is W
    assert truncated(W, 9) is W


def test_factors_have_the_planned_rank_whatever_rounding_says():
    W = planted(6, 5, [2.0, 1.0])
    left, right = thin_factors(W, 3)
    assert (left.shape, right.shape) == ((6, 3), (3, 5))
    torch.testing.assert_close(left @ right, W)


def test_two_factors_serve_where_they_have_fewer_numbers():
    assert thin_is_smaller(2, (6, 3)) is False  # 18 numbers each
    assert thin_is_smaller(1, (6, 3)) is True
    assert [r for r in range(9) if thin_is_smaller(r, (8, 8))] == [0, 1, 2, 3]


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(NonFiniteError):
        truncated(torch.full((2, 2), math.nan), 1)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, 90, math.nan, math.inf])
def test_impossible_shares_are_refused(share):
    with pytest.raises(UsageError, match=r"--prune \S+: give the share"):
        Pruning(share)
    with pytest.raises(UsageError, match="--prune-by row: give layer or all"):
        Pruning(0.5, "row")


# --- whole language models --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "sst", "opt"])
def trained(request, tmp_path_factory):
    """(run, its plain checkpoint); an OPT has biases and tied embeddings."""
    folder = tmp_path_factory.mktemp(request.param)
    method = FullRank() if request.param == "full" else SST(4, resample_every=3)
    task = make_task("opt-125m", OPT) if request.param == "opt" else make_task()
    run(folder / "run", method, task, eval_every=0)
    export(folder / "run", folder / "plain")
    return folder


def loaded(folder, dtype=torch.float64):
    return AutoModelForCausalLM.from_pretrained(folder).to(dtype).eval()


def perplexity(model):
    """On the test data, in float64."""
    return evaluate(model, make_task().corpus.splits["test"], 16, 8, max_tokens=600).perplexity


def by_hand(model, share):
    """`model` with the dense truncation of every linear layer but the head, all in NumPy's float64."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            u, s, v = np.linalg.svd(layer.weight.detach().numpy(), full_matrices=False)
            rank = int(np.searchsorted(np.cumsum(s), share * s.sum())) + 1
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(u[:, :rank] * s[:rank] @ v[:rank]))
    return model


@pytest.mark.parametrize("share", [0.9, 0.4])
def test_perplexity_is_that_of_the_dense_truncation(trained, tmp_path, share):
    expected = perplexity(by_hand(loaded(trained / "plain"), share))
    assert abs(expected / perplexity(loaded(trained / "plain")) - 1) > 1e-4
    dense = export(trained / "run", tmp_path / "dense", pruning=Pruning(share))
    assert perplexity(loaded(tmp_path / "dense")) == pytest.approx(expected, rel=1e-6)
    thin = export(trained / "run", tmp_path / "thin", pruning=Pruning(share), factored=True)
    model = load_factored(tmp_path / "thin")
    assert perplexity(model.double()) == pytest.approx(expected, rel=1e-6)
    assert dense.difference == pytest.approx(thin.difference, rel=1e-3)
    assert sum(p.numel() for p in model.parameters()) == thin.pruned.parameters[1]
    written = load_file(tmp_path / "thin" / "factored.safetensors")
    assert sum(t.nbytes for t in written.values()) == thin.pruned.bytes[1] <= dense.pruned.bytes[0]
    again = export(trained / "plain", tmp_path / "again", pruning=Pruning(share))
    assert again.step is None
    assert perplexity(loaded(tmp_path / "again")) == pytest.approx(expected, rel=1e-6)


def test_only_the_layers_of_the_method_are_touched(trained, tmp_path):
    done = export(trained / "run", tmp_path / "out", pruning=Pruning(0.5))
    before = load_file(trained / "plain" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer.name}.weight" for layer in done.pruned.layers}
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in changed)
    for layer in done.pruned.layers:
        W, W_r = (tensors[f"{layer.name}.weight"].double() for tensors in (before, after))
        s = torch.linalg.svdvals(W)
        assert layer.share == pytest.approx(float(s[: layer.rank].sum() / s.sum()), rel=1e-5)
        assert layer.change == pytest.approx(float((W - W_r).norm() / W.norm()), rel=1e-4)
        assert tuple(W.shape) == layer.shape
    excluded = make_task()
    run(tmp_path / "other", SST(4, resample_every=3), excluded, exclude="lm_head,down_proj")
    done = export(tmp_path / "other", tmp_path / "less", pruning=Pruning(0.5))
    assert len(done.pruned.layers) == 6
    assert not any("down_proj" in layer.name for layer in done.pruned.layers)


def test_all_of_it_is_what_it_was(trained, tmp_path):
    """A share of 1 changes no bit, but of layers that are of low rank already."""
    export(trained / "run", tmp_path / "out", pruning=Pruning(1))
    before = load_file(trained / "plain" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_transposed_layer_is_pruned_as_its_matrix(tmp_path):
    """GPT-2's Conv1D stores W as (in, out)."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)).eval()
    model.save_pretrained(tmp_path / "gpt2")
    ends = (tmp_path / "dense", tmp_path / "thin")
    for out in ends:
        done = export(tmp_path / "gpt2", out, pruning=Pruning(0.5), factored=out == ends[1])
        assert {layer.shape for layer in done.pruned.layers} == {
            (48, 16),
            (16, 16),
            (64, 16),
            (16, 64),
        }
    for layer in done.pruned.layers:
        weight = model.get_parameter(f"{layer.name}.weight")
        weight.data = truncated(weight.detach(), layer.rank)
    assert done.pruned.ratio < 1
    expected = perplexity(model.double())
    assert perplexity(loaded(ends[0])) == pytest.approx(expected, rel=1e-6)
    assert perplexity(load_factored(ends[1]).double()) == pytest.approx(expected, rel=1e-6)


def test_a_matrix_is_read_twice_and_only_one_is_in_memory(trained, tmp_path, monkeypatch):
    real, seen = export_module.plain_tensor, []

    def watched(source, name, layers):
        seen.append(name)
        resident = [p for layer in layers.values() for p in layer.state_dict().values()]
        assert all(p.is_meta for p in resident)
        return real(source, name, layers)

    monkeypatch.setattr(export_module, "plain_tensor", watched)
    done = export(trained / "run", tmp_path / "out", pruning=Pruning(0.4), factored=True)
    weights = {f"{layer.name}.weight" for layer in done.pruned.layers}
    assert all(seen.count(name) == (2 if name in weights else 1) for name in seen)


def test_weights_without_a_spectrum_are_named_and_nothing_is_left(tmp_path):
    model = make_task().build_model()
    model.model.layers[0].mlp.up_proj.weight.data[3, 2] = math.nan
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(RunError, match=r"layers\.0\.mlp\.up_proj\.weight has NaN or infinite"):
        export(tmp_path / "start", tmp_path / "out", pruning=Pruning(0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
