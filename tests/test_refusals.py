"""Impossible settings and orders of calls: one clear sentence that names the field or the layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import RANK, every_default, every_default_matrix, small
from torch import nn
from toys import Training, batch, make_net

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA, UsageError
from spectrain.errors import SpectrainWarning
from spectrain.method import method_from, registered


def refused(match):
    return pytest.raises(UsageError, match=match)


def wrong_values():
    """(class, field, value) of every registered method: just outside each declared bound."""
    for key, cls in registered().items():
        for field in dataclasses.fields(cls):
            bounds = field.metadata
            whole = "int" in str(field.type)
            values = ["nonsense"] if bounds.get("choices") else []
            if bounds.get("minimum") is not None:
                values += [bounds["minimum"] - 1, "4", True, float("nan"), 2.5 if whole else "x"]
            if bounds.get("maximum") is not None:
                values.append(bounds["maximum"] + 1)
            for value in values:
                yield pytest.param(cls, field.name, value, id=f"{key}-{field.name}-{value}")


@pytest.mark.parametrize(("cls", "field", "value"), list(wrong_values()))
def test_a_setting_outside_its_bounds_is_refused_by_name(cls, field, value):
    with refused(rf"{field} is {value!r}; (allowed are|it must be)") as caught:
        dataclasses.replace(small(cls), **{field: value})
    assert "\n" not in str(caught.value)


@every_default
def test_a_rank_above_the_smaller_side_is_refused_before_anything_changes(method):
    if not hasattr(method, "rank"):
        pytest.skip("this method has no rank")
    net = make_net()
    with refused(r"rank is 6, but wide is 5 × 8; choose 1 … 5"):
        spectrain.apply(net, dataclasses.replace(method, rank=6), report=None)
    assert net(batch(0)[0]).shape == (4, 3, 5)
    assert type(net.tall) is nn.Linear


@every_default
def test_settings_survive_json_and_come_back(method):
    settings = method.settings()
    assert method_from(settings.pop("name"), settings) == method
    assert isinstance(method.schedule_text(), str)
    assert all(isinstance(note, str) for note in method.variations())


@every_default
def test_attach_before_apply_is_refused(method):
    net = make_net()
    with refused("spectrain.apply first"):
        spectrain.attach(net, torch.optim.AdamW(net.parameters()))
    with refused("spectrain.apply first"):
        spectrain.param_groups(net, 1e-3)


@every_default
def test_applying_twice_is_refused(method):
    net = spectrain.apply(make_net(), method, report=None)
    with refused("exchanged already"):
        spectrain.apply(net, method, report=None)


@every_default
def test_attaching_twice_is_refused_through_a_wrapper_too(method):
    training = Training(method)
    for model in (training.model, nn.Sequential(training.model)):
        with refused("attached already"):
            spectrain.attach(model, training.optimizer)
    spectrain.detach(nn.Sequential(training.model))
    with refused("not attached"):
        spectrain.detach(training.model)
    spectrain.attach(training.model, training.optimizer)
    training.run(0, 2)
    assert {int(layer.clock) for layer in training.layers} == {2}


@every_default
def test_a_bare_layer_is_refused_and_left_as_it_was(method):
    linear = nn.Linear(6, 6)
    with refused("itself one layer"):
        spectrain.apply(linear, method, report=None)
    assert linear(torch.ones(6)).shape == (6,)


@every_default_matrix
def test_factors_in_no_optimizer_are_refused(method):
    net = make_net()
    early = torch.optim.AdamW(net.parameters())
    spectrain.apply(net, method, report=None)
    with refused(
        r"factor \w+ of \w+ is in no optimizer; build the optimizer after spectrain.apply"
    ):
        spectrain.attach(net, early)
    groups = spectrain.param_groups(net, 1e-3)
    twice = [torch.optim.AdamW(groups), torch.optim.SGD(spectrain.param_groups(net, 1e-3))]
    with refused("more than one optimizer"):
        spectrain.attach(net, twice)
    assert not any(m.attached for m in net.children() if hasattr(m, "attached"))
    spectrain.attach(net, twice[0])  # a refusal leaves nothing behind
    spectrain.merge(net)


@every_default
@pytest.mark.parametrize("kind", ["LBFGS", "SparseAdam"])
def test_unusable_optimizers_are_refused(method, kind):
    net = spectrain.apply(make_net(), method, report=None)
    optimizer = getattr(torch.optim, kind)([p for p in net.parameters() if p.requires_grad])
    with refused(f"{kind} cannot be used, since"):
        spectrain.attach(net, optimizer)
    with refused("Linear is no torch.optim optimizer"):
        spectrain.attach(net, nn.Linear(2, 2))


@pytest.mark.parametrize("method", [SST(RANK), ReLoRA(RANK)], ids=["sst", "relora"])
def test_a_group_shared_with_others_is_refused_where_rates_warm_up(method):
    net = spectrain.apply(make_net(), method, report=None)
    with refused(r"share a parameter group.*spectrain.param_groups"):
        spectrain.attach(net, torch.optim.AdamW(p for p in net.parameters() if p.requires_grad))


@pytest.mark.parametrize("method", [FullRank(), LoRA(RANK), GaLore(RANK), SST(RANK, warmup=0)])
def test_a_shared_group_is_fine_where_no_rate_warms_up(method):
    net = spectrain.apply(make_net(), method, report=None)
    spectrain.attach(net, torch.optim.AdamW(p for p in net.parameters() if p.requires_grad))


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["squares"], "did you mean square"),
        (["q_proj"], "there are conv, square, tall, wide"),
        ("tal.", None),
        ("(", "no regular expression"),
        ([], "no layer matches"),
    ],
)
def test_targets_that_match_nothing_suggest_near_names(targets, message):
    net = make_net()
    if message is None:
        spectrain.apply(net, FullRank(), targets=targets, report=None)
        assert hasattr(net.tall, "clock")
        assert not hasattr(net.wide, "clock")
        return
    with refused(message):
        spectrain.apply(net, FullRank(), targets=targets, report=None)


def test_a_model_without_linear_layers_is_refused():
    with refused("Sequential has no linear layer at all"):
        spectrain.apply(nn.Sequential(nn.Tanh()), FullRank(), report=None)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 6)
        self.body = nn.Linear(6, 6)
        self.out = nn.Linear(6, 8, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.body(self.embedding(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(6, 2)
        self.out = nn.Linear(6, 6)


@pytest.mark.parametrize(
    ("model", "message", "exclude"),
    [
        (Tied(), r"out: its weight is tied", ["out"]),
        (Attention(), r"mha.out_proj: nn.MultiheadAttention reads", ["out_proj"]),
        (
            nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
            r"1: its weight is computed from other parameters",
            ["1"],
        ),
    ],
    ids=["tied", "attention", "weight-norm"],
)
def test_layers_that_cannot_be_exchanged_are_refused_by_name(model, message, exclude):
    with refused(message):
        spectrain.apply(model, LoRA(2), report=None)
    assert not any(hasattr(module, "clock") for module in model.modules())
    spectrain.apply(model, LoRA(2), exclude=exclude, report=None)


def test_lazy_layers_are_refused_until_they_have_a_shape():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with refused("0.weight has no shape yet; run one batch"):
        spectrain.apply(net, LoRA(2), report=None)
    net(torch.ones(1, 3))
    spectrain.apply(net, LoRA(2), report=None)


def test_integer_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with refused("stored as torch.int8"):
        spectrain.apply(net, LoRA(2), report=None)


# --- names --------------------------------------------------------------------------------------


def test_unknown_methods_and_settings_are_refused_with_near_names():
    with refused(r"no method called 'SSD'; did you mean 'sst'\? \(known: "):
        method_from("SSD", {})
    with refused("no method called 'zzz' "):
        method_from("zzz", {})
    with refused(r"SST has no setting called 'ranks' \(it has: rank, "):
        method_from("sst", {"ranks": 4})
    with refused("SST needs a value for rank"):
        method_from("sst", {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(4, scaling="rslora"), "needs alpha"),
        (lambda: SST(4, residual=True, sampling="sequential"), "residual=True"),
        (lambda: SST(4, residual=True, frozen_dtype="bfloat16"), "residual=True"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make, message):
    with refused(message):
        make()


# --- silence is an error ------------------------------------------------------------------------


def test_factors_without_any_gradient_are_refused():
    training = Training(SST(RANK))
    x, _ = batch(0)
    training.model.norm(training.model.tall(x).detach()).sum().backward()
    with refused("no factor received a gradient"):
        training.optimizer.step()


def test_parameters_without_a_gradient_are_named():
    training = Training(LoRA(RANK))
    x, _ = batch(0)
    training.model.tall(x).sum().backward()
    with pytest.warns(
        SpectrainWarning, match=r"no gradient in the first backward pass: norm.weight"
    ):
        training.optimizer.step()


def test_parameters_in_no_group_are_named():
    net = spectrain.apply(make_net(), LoRA(RANK), report=None)
    factors = spectrain.param_groups(net, 1e-3)[-1:]
    with pytest.warns(SpectrainWarning, match=r"in no optimizer and will not move: tall.bias"):
        spectrain.attach(net, torch.optim.AdamW(factors))


@pytest.mark.parametrize("method", [SST(RANK), GaLore(RANK), ReLoRA(RANK)])
def test_training_without_attach_is_said_at_the_merge(method):
    training = Training(method, attach=False).run(0, 2)
    with pytest.warns(SpectrainWarning, match="schedule never ticked"):
        spectrain.merge(training.model)


@every_default_matrix
def test_nothing_is_said_where_nothing_is_wrong(method):
    training = Training(method)
    spectrain.detach(training.model)
    training.model.load_state_dict(training.model.state_dict())
    spectrain.merge(training.model)


def test_state_of_different_steps_is_refused():
    training = Training(SST(RANK))
    training.model.wide.clock.fill_(3)
    spectrain.detach(training.model)
    with refused("clocks differ"):
        spectrain.attach(training.model, training.optimizer)
    training.model.wide.clock.fill_(0)
    spectrain.attach(training.model, training.optimizer)  # the refusal left nothing behind
    training.run(0, 1)
    assert {int(layer.clock) for layer in training.layers} == {1}
