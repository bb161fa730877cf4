"""apply, merge and parameter groups on models of every kind, and the records of the methods."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from cases import RANK, every_default, every_default_matrix, small
from torch import nn
from torch.nn import functional as F
from toys import Training, make_net

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA
from spectrain.method import registered
from spectrain.surgery import parametrized


class Patches(nn.Module):
    """A small vision transformer: patch embedding by convolution, attention, feed-forward."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.position = nn.Parameter(torch.zeros(4, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        x = self.embed(images).flatten(2).mT + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5))


def bare_loop(model, method):
    images, labels = torch.randn(32, 1, 8, 8), torch.randint(5, (32,))
    spectrain.apply(model, method, report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=0.01, weight_decay=0.01))
    spectrain.attach(model, optimizer)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    before = model(images)
    merged = spectrain.merge(model)
    return losses, before, merged(images)


@pytest.mark.parametrize("make", [mlp, Patches])
@every_default_matrix
def test_a_bare_loop_trains_and_merges(method, make):
    assert len(inspect.getsource(bare_loop).splitlines()) <= 20
    torch.manual_seed(1)
    model = make()
    keys = [(n, v.shape) for n, v in model.state_dict().items()]
    losses, before, after = bare_loop(model, method)
    assert losses[-1] < 0.95 * losses[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert [(n, v.shape) for n, v in model.state_dict().items()] == keys


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([self.first, nn.Linear(6, 6), self.first])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@every_default_matrix
def test_a_layer_that_stands_in_two_places_is_exchanged_in_both(method):
    net, plain = Reused(), None
    plain = copy.deepcopy(net)
    x = torch.randn(4, 6)
    spectrain.apply(net, method, report=None)
    assert net.first is net.blocks[0] is net.blocks[2]
    if method.keeps_function:
        torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-6)
        net(x).sum().backward()
        plain(x).sum().backward()
        torch.testing.assert_close(net.first.bias.grad, plain.first.bias.grad, rtol=1e-4, atol=1e-5)
    spectrain.merge(net)
    assert net.first is net.blocks[0] is net.blocks[2]
    assert list(net.state_dict()) == list(plain.state_dict())


def test_methods_can_meet_in_one_model():
    net = make_net()
    pairs = [("tall", SST(RANK, resample_every=3)), ("square", SST(2, resample_every=2))]
    pairs += [("wide", ReLoRA(RANK, merge_every=4)), ("conv", GaLore(RANK, refresh_every=3))]
    for name, method in pairs:
        spectrain.apply(net, method, targets=[name], report=None)
    training = Training.__new__(Training)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    training.dtype, training.model, training.losses = torch.float32, net, []
    applied = []
    optimizer.register_step_pre_hook(
        lambda o, a, k: applied.append(
            {id(p): g["lr"] for g in o.param_groups for p in g["params"]}
        )
    )
    for step in range(8):
        training.backward(step)
        optimizer.step()
        optimizer.zero_grad()
    for name, method in pairs:
        for p in net.get_submodule(name).factors().values():
            expected = [0.01 * method.warmup_factor(t) for t in range(8)]
            assert [rates[id(p)] for rates in applied] == pytest.approx(expected)
    assert isinstance(spectrain.merge(net).tall, nn.Linear)


def test_the_table_of_what_was_matched():
    lines = []
    spectrain.apply(make_net(), LoRA(RANK), exclude=["square"], report=lines.append)
    net = make_net()
    total = sum(p.numel() for p in net.parameters())
    covered = net.tall.weight.numel() + net.conv.weight.numel() + net.wide.weight.numel()
    (table,) = lines
    assert table.splitlines() == [
        f"LoRA on 3 layers, {covered} of {total} parameters ({covered / total:.1%})",
        "  tall         10 × 6  × 1                60",
        "  conv         8 × 10  × 1                80",
        "  wide          5 × 8  × 1                40",
        "  other matrices, left as they are: 64 (square.weight)",
    ]


def test_the_table_goes_to_the_screen_by_default(capsys):
    spectrain.apply(make_net(), FullRank())
    assert capsys.readouterr().out.startswith("Full rank on 4 layers, ")


@every_default
def test_groups_hold_every_trainable_parameter_once(method):
    net = spectrain.apply(make_net(), method, report=None)
    groups = spectrain.param_groups(net, 1e-3, weight_decay=0.1, factor_lr=1e-2)
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    factors = {id(p) for _, layer in parametrized(net) for p in layer.factors().values()}
    for group in groups:
        kinds = {id(p) in factors for p in group["params"]}
        assert len(kinds) == 1
        assert group["lr"] == (1e-2 if kinds.pop() else 1e-3)
    vectors = {id(p) for p in net.parameters() if p.ndim == 1} - factors
    assert all(g["weight_decay"] == 0 for g in groups if vectors & {id(p) for p in g["params"]})


def test_the_records_of_all_methods():
    cards = spectrain.methods()
    assert [card.key for card in cards] == list(registered())
    assert {"full", "lora", "relora", "sst", "galore"} <= set(registered())
    for card in cards:
        axes = card.parametrization, card.initializer, card.step_rule, card.schedule
        assert all(axes)
        assert card.title
        assert card.summary
        assert small(registered()[card.key]).title
    keys = [paper.key for card in cards for paper in card.papers]
    assert all(f"{{{key}," in p.bibtex() for c in cards for p in c.papers for key in [p.key])
    assert keys


def test_hooks_on_a_layer_run_on_what_replaces_it_and_after_merge():
    net = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 2))
    seen = []
    handle = net[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    spectrain.apply(net, spectrain.LoRA(2), report=None)
    net(torch.randn(3, 6))
    spectrain.merge(net)
    net(torch.randn(4, 6))
    assert seen == [(3, 6), (4, 6)]
    handle.remove()
    net(torch.randn(5, 6))
    assert len(seen) == 2


def test_a_linear_layer_with_a_forward_of_its_own_is_refused():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(spectrain.UsageError, match="Doubled"):
        spectrain.apply(torch.nn.Sequential(Doubled(4, 4)), spectrain.LoRA(2), report=None)
