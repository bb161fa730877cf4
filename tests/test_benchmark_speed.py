"""The speed benchmark: its output's form, its operation counts, its reference layer; never its times."""

from __future__ import annotations

import json

import pytest
import speed
import speed_plan
import three_product_sst
import torch
from speed_arms import RECIPES, make
from speed_blocks import SHAPES, Shape, Stack, matrices
from speed_timing import Feed, train_step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectrain

aten = torch.ops.aten


class Multiplications(TorchDispatchMode):
    """Counts the operations of all products of matrices that are run."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default):
            a, b = args[-2:]
            self.operations += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        assert func not in (aten.bmm.default, aten.baddbmm.default), "count these, too"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("key", RECIPES)
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("tokens", [24, 160])  # few and many for the width: all routes are taken
def test_a_step_runs_the_products_that_were_counted(key, family, tokens):
    pytest.importorskip(key.replace("-", "_")) if key.endswith("torch") else None
    shape = Shape("small", 32, 96, 2, family)
    stack = Stack(shape, 1, sequence=tokens // 2)
    arm = make(RECIPES[key], stack, matrices(stack), tokens, shape.width)
    x = torch.randn(2, tokens // 2, 32, requires_grad=True)
    given = Feed(x, torch.randn(2, tokens // 2, 32))
    train_step(arm, given)  # the first may refresh a basis
    with Multiplications() as products:
        for _ in range(arm.cycle):
            train_step(arm, given)
    assert products.operations / arm.cycle == arm.operations


def test_all_arms_start_with_the_same_function():
    shape = Shape("small", 32, 96, 2)
    stack = Stack(shape, 1, sequence=6)
    x = torch.randn(2, 6, 32)
    for key in RECIPES.keys() - {"apollo-torch"}:
        arm = make(RECIPES[key], stack, matrices(stack), 12, 32)
        torch.testing.assert_close(arm.model(x), stack(x), rtol=1e-4, atol=1e-5)


def test_the_benchmark_runs_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SHAPES, "LLaMA 60M", Shape("LLaMA 60M", 32, 96, 2))
    arms = tuple((key, None) for key in RECIPES if key != "apollo-torch")
    plans = (
        speed_plan.Plan("60m-4096", "LLaMA 60M", 256, arms, rounds=4, blocks=1, memory=True),
        speed_plan.Plan("ranks", "LLaMA 60M", 256, (("full", None), ("sst", 4)), rounds=1),
    )
    monkeypatch.setattr(speed, "TABLES", plans)
    speed.main(["--targets", "--repetitions", "1", "--out", str(tmp_path)])
    assert "| SST / plain three-product SST" in capsys.readouterr().out
    results = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    (table,) = results["tables"]  # --targets leaves the others out
    assert [row["arm"] for row in table["rows"]] == [key for key, _ in arms]
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows["full"]["ratio"] == rows["full"]["expected"] == 1
    assert all(row["step_ms"] > 0 and row["memory"]["peak"] > 0 for row in rows.values())
    assert set(rows["sst"]["events_ms"]) == {"re-SVD every 1600", "resampling every 200"}
    assert rows["galore-torch"]["refresh_ms"] is not None
    moments = 2 * 4 * rows["galore"]["trained"]
    bases = 4 * 7 * 32 * 32  # it keeps views of r vectors, and with them all k of every layer
    assert rows["galore-torch"]["memory"]["optimizer"] == moments + bases
    assert results["bytes"]["residual"]["ratio"] < results["bytes"]["sst"]["ratio"] < 1
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert all(RECIPES[key].title in text for key, _ in arms)
    assert str(tmp_path) not in text.replace(results["command"], "")


def test_a_whole_model_is_timed_with_embeddings_and_head(monkeypatch):
    monkeypatch.setitem(SHAPES, "LLaMA 60M", Shape("LLaMA 60M", 32, 96, 2))
    monkeypatch.setattr(speed, "VOCABULARY", 64)
    arms = tuple((key, None) for key in ("full", "sst", "galore"))
    plan = speed_plan.Plan("whole", "LLaMA 60M", 256, arms, rounds=1, whole=True, memory=True)
    table = speed.measure(plan, torch.device("cpu"))
    assert table["rows"][0]["trained"] > 2 * 64 * 32  # embeddings and head among them
    assert table["rows"][0]["operations"] == 6 * 256 * 8 * (4 * 32 * 32 + 3 * 32 * 96)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)], ids=["tall", "wide", "square"])
def test_the_reference_layers_gradients_are_autograds(shape):
    linear = nn.Linear(*shape[::-1]).double()
    layer = three_product_sst.ThreeProductLinear(linear, rank=2)
    x, gy = torch.randn(5, shape[1]).double(), torch.randn(5, shape[0]).double()
    torch.testing.assert_close(layer(x), linear(x))
    layer(x).backward(gy)

    U, V = layer.U_active.detach().requires_grad_(), layer.V_active.detach().requires_grad_()
    s = layer.s.detach().requires_grad_()
    W = (torch.cat((U, layer.U_frozen), 1) * s) @ torch.cat((V, layer.V_frozen), 1).mT
    (x @ W.mT).backward(gy)
    for own, expected in ((layer.U_active, U), (layer.V_active, V), (layer.s, s)):
        torch.testing.assert_close(own.grad, expected.grad)
    layer.enhance()
    torch.testing.assert_close(layer.U_active.grad * s[:2], U.grad)
    torch.testing.assert_close(layer.V_active.grad * s[:2], V.grad)


def test_the_reference_layer_trains_as_spectrains_sst_does():
    ours = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6)).double()
    plain = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6)).double()
    spectrain.apply(ours, spectrain.SST(2, warmup=0), report=None)
    layers = three_product_sst.exchange(plain, 2)
    for mine, theirs in zip((ours[0], ours[2]), layers, strict=True):
        with torch.no_grad():
            theirs.s.copy_(mine.s)
            for name in ("U_active", "V_active", "U_frozen", "V_frozen"):
                getattr(theirs, name).copy_(getattr(mine, name).mT)
            theirs.bias.copy_(mine.bias)
    one = torch.optim.AdamW(spectrain.param_groups(ours, 0.01), weight_decay=0.0)
    other = torch.optim.AdamW((p for p in plain.parameters() if p.requires_grad), 0.01)
    other.param_groups[0]["weight_decay"] = 0.0
    spectrain.attach(ours, one)
    x = torch.randn(5, 8).double()
    for _ in range(4):
        ours(x).square().sum().backward()
        plain(x).square().sum().backward()
        one.step()
        three_product_sst.optimizer_step(other, layers)
        one.zero_grad()
        other.zero_grad()
    torch.testing.assert_close(ours(x), plain(x))


def test_every_target_names_a_table_and_an_arm_of_the_plan():
    rows = {plan.key: {key for key, _ in plan.arms} for plan in speed_plan.TABLES}
    rows["bytes"] = {"full", "sst", "residual"}
    column = dict.fromkeys(
        ("ratio", "ratio_with_events", "basis_ms", "deviation", "events_share"), 1.0
    )
    tables = {key: dict.fromkeys(arms, column) for key, arms in rows.items()}
    assert all(target.measured(tables) == 1.0 for target in speed_plan.TARGETS)
