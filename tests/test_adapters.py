"""What LoRA, rsLoRA, ReLoRA, ReLoRA* and COLA promise."""

from __future__ import annotations

import math

import pytest
import torch
from cases import RANK
from torch import nn
from toys import Training, batch, one_layer, same

import spectrain
from spectrain import FullRank, LoRA, ReLoRA
from spectrain.initializers.adapters import kaiming_zero
from spectrain.parametrizations.additive import Additive


def relora(**settings):
    return ReLoRA(**{"rank": RANK, "merge_every": 3, "rewarm": 2} | settings)


def square_net():
    return nn.Sequential(
        nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 5)
    )


def rank_of(difference):
    return int(torch.linalg.matrix_rank(difference, rtol=1e-10))


# --- LoRA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LoRA(2), LoRA(2, alpha=4.0, scaling="rslora")])
def test_the_update_has_at_most_rank_r(method):
    training = Training(method, dtype=torch.float64, net=square_net().double()).run(0, 8)
    for name in ("0", "2", "4"):
        moved = training.model.get_submodule(name).dense() - training.original[f"{name}.weight"]
        assert rank_of(moved.detach()) == 2


def test_the_scale_is_alpha_over_r_or_root_r_and_applied_once():
    assert LoRA(4).scale == 1
    assert LoRA(4, alpha=6.0).scale == 1.5
    assert LoRA(4, alpha=6.0, scaling="rslora").scale == 3
    layer, plain = one_layer(LoRA(4, alpha=6.0), (9, 6))
    with torch.no_grad():
        layer.B.normal_()
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x) + 1.5 * x @ layer.A.mT @ layer.B.mT)
    torch.testing.assert_close(layer.dense(), plain.weight + 1.5 * layer.B @ layer.A)


def test_rslora_equals_lora_with_alpha_times_root_r():
    rs = Training(LoRA(RANK, alpha=3.0, scaling="rslora")).run(0, 5)
    plain = Training(LoRA(RANK, alpha=3.0 * math.sqrt(RANK))).run(0, 5)
    assert rs.losses == plain.losses
    assert same(rs.model.state_dict(), plain.model.state_dict())


def test_rslora_keeps_the_size_of_the_update_at_every_rank():
    n, x = 512, torch.randn(512)
    spread = {}
    for scaling in ("rslora", "alpha/r"):
        for rank in (8, 64, 512):
            layer, _ = one_layer(
                LoRA(rank, alpha=8.0, scaling=scaling), (n, n), dtype=torch.float32
            )
            outputs = []
            for seed in range(50):
                generator = torch.Generator().manual_seed(seed)
                kaiming_zero(layer, generator)
                B = torch.randn(n, rank, generator=generator)
                outputs.append(layer.scale * (B @ (layer.A.detach() @ x)))
            spread[scaling, rank] = float(torch.stack(outputs).std())
    for rank in (64, 512):
        assert spread["rslora", rank] == pytest.approx(spread["rslora", 8], rel=0.1)
        shrunk = spread["alpha/r", 8] / math.sqrt(rank / 8)
        assert spread["alpha/r", rank] == pytest.approx(shrunk, rel=0.1)


def test_a_starts_kaiming_uniform_and_b_at_zero():
    layer, _ = one_layer(LoRA(40), (50, 100), dtype=torch.float32)
    assert layer.B.abs().max() == 0
    bound = 1 / math.sqrt(100)
    assert 0.98 * bound < layer.A.abs().max() <= bound
    assert float(layer.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_dropout_acts_on_the_update_alone_and_not_in_evaluation():
    layer, plain = one_layer(LoRA(RANK, dropout=0.5), (9, 6))
    x = torch.randn(64, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))  # B = 0: dropout changes nothing
    with torch.no_grad():
        layer.B.normal_()
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), x @ layer.dense().mT + layer.bias)


# --- ReLoRA -------------------------------------------------------------------------------------


def test_a_merge_leaves_the_function_alone_and_revives_the_gradients(monkeypatch):
    before = []
    fold = Additive.fold

    def watched(layer):
        before.append(layer.dense())
        fold(layer)

    monkeypatch.setattr(Additive, "fold", watched)
    training = Training(relora(), dtype=torch.float64).run(0, 3)
    assert len(before) == 4
    for W, layer in zip(before, training.layers, strict=True):
        torch.testing.assert_close(layer.dense(), W, rtol=1e-13, atol=1e-13)
        assert torch.equal(layer.dense(), layer.base)
        assert layer.B.abs().max() == 0
        assert layer.A.abs().min() > 0
    training.backward(3)
    assert all(layer.B.grad.abs().max() > 0 for layer in training.layers)
    assert all(layer.A.grad.abs().max() == 0 for layer in training.layers)
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.backward(4)
    assert all(layer.A.grad.abs().max() > 0 for layer in training.layers)  # alive in two steps


def test_restarts_draw_a_new_a_every_time_and_for_every_layer():
    training = Training(
        relora(), net=nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)], nn.Linear(6, 5))
    )
    drawn = []
    for link in range(3):
        drawn += [layer.A.detach().clone() for layer in training.layers]
        training.run(3 * link, 3 * link + 3)
    same_shape = [A for A in drawn if A.shape == (RANK, 6)]
    assert not any(torch.equal(a, b) for i, a in enumerate(same_shape) for b in same_shape[:i])


def test_rank_grows_past_r_and_not_past_the_number_of_links_times_r():
    method = ReLoRA(2, merge_every=3, rewarm=0)
    training = Training(method, dtype=torch.float64, net=square_net().double())
    for merges in range(4):
        training.run(3 * merges, 3 * merges + 2)
        moved = training.model.get_submodule("2").dense() - training.original["2.weight"]
        assert rank_of(moved.detach()) <= (merges + 1) * 2
        assert rank_of(moved.detach()) > 2 or merges == 0
        training.run(3 * merges + 2, 3 * merges + 3)


def around_the_event(method, steps=3):
    """Optimizer states, by factor or not, right before and right after the event at `steps`."""
    training = Training(method, attach=False)
    before = {}

    def snapshot(optimizer, args, kwargs):  # registered before attach: runs before the event
        for p, state in optimizer.state.items():
            before[id(p)] = {name: value.clone() for name, value in state.items()}

    training.optimizer.register_step_post_hook(snapshot)
    spectrain.attach(training.model, training.optimizer)
    training.run(0, steps)
    factors = {id(p) for layer in training.layers for p in layer.factors().values()}
    pairs = [(id(p) in factors, before[id(p)], s) for p, s in training.optimizer.state.items()]
    return [p[1:] for p in pairs if p[0]], [p[1:] for p in pairs if not p[0]]


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("by", ["random", "magnitude"])
def test_pruning_zeroes_the_share_that_was_asked_for(ratio, by):
    factors, others = around_the_event(relora(moments="prune", prune=by, prune_ratio=ratio))
    dropped = total = 0
    for before, after in factors:
        assert torch.equal(before["step"], after["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            old, new = before[name], after[name]
            zero = (new == 0) & (old != 0)
            assert torch.equal(new[~zero], old[~zero])  # the others are bit-identical
            if by == "magnitude":
                assert int((new == 0).sum()) >= ratio * new.numel() - 1
                if 0 < ratio < 1 and name == "exp_avg":  # whose magnitudes decide for both
                    assert old[zero].abs().max() <= old[~zero].abs().min()
            dropped += int(zero.sum())
            total += int((old != 0).sum())
    sigma = math.sqrt(ratio * (1 - ratio) / total)
    assert abs(dropped / total - ratio) <= (4 * sigma if by == "random" else 0.05)
    assert others
    assert all(same(before, after) for before, after in others)


def test_reset_clears_the_factors_alone():
    factors, others = around_the_event(relora())
    assert all(value.abs().max() == 0 for _, after in factors for value in after.values())
    assert all(same(before, after) for before, after in others)


def test_fresh_clears_the_whole_optimizer():
    factors, others = around_the_event(relora(moments="fresh"))
    assert all(value.abs().max() == 0 for _, after in factors + others for value in after.values())


def test_moments_are_edited_at_their_own_period():
    training = Training(relora(merge_every=2, reset_every=4))
    p = training.layers[0].B
    steps = []
    for step in range(8):
        training.step(step)
        steps.append(int(training.optimizer.state[p]["step"]))
    assert steps == [1, 2, 3, 0, 1, 2, 3, 0]


def test_the_rate_warms_up_after_every_restart_but_not_at_the_start():
    method = relora(merge_every=4, rewarm=3)
    multipliers = [method.warmup_factor(t) for t in range(10)]
    assert multipliers == pytest.approx([1, 1, 1, 1, 1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3])
    assert [relora(rewarm=0).warmup_factor(t) for t in range(8)] == [1] * 8


def test_a_chain_of_one_link_is_lora_bit_for_bit():
    cola = Training(ReLoRA(RANK, merge_every=100, moments="fresh", rewarm=0)).run(0, 5)
    lora = Training(LoRA(RANK)).run(0, 5)
    assert cola.losses == lora.losses
    assert same(cola.model.state_dict(), lora.model.state_dict())


def test_a_warm_start_is_a_phase_of_its_own():
    method = relora(warm_start=2)
    assert method.phases(8) == [(FullRank(), 2), (relora(), 6)]
    with pytest.raises(spectrain.UsageError, match="warm_start is 2, which leaves nothing of 2"):
        method.phases(2)
    assert relora().phases(8) == [(relora(), 8)]
    net, done = square_net(), 0
    start = net[2].weight.detach().clone()
    for phase, steps in method.phases(8):
        training = Training(phase, net=net, lr=0.02).run(done, done + steps)
        done += steps
        net = spectrain.merge(training.model)
        assert torch.linalg.matrix_rank(net[2].weight - start, rtol=1e-4) > RANK
    assert net(batch(0)[0]).shape == (4, 3, 5)


def test_names_follow_the_settings():
    assert relora().title == "ReLoRA*"
    assert relora(warm_start=5).title == relora(moments="prune").title == "ReLoRA"
    assert relora(moments="fresh").title == "COLA"
