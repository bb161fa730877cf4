"""Trajectories, gradients and counts against galore-torch, peft, torch.optim and printed numbers."""

from __future__ import annotations

import copy
import math

import galore_torch.galore_projector
import peft
import pytest
import torch
from cases import RANK, every_default
from galore_torch import GaLoreAdamW
from torch import nn
from torch.nn import functional as F
from toys import Training, batch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, linalg

# --- galore-torch -------------------------------------------------------------------------------

T, STEPS, LR, ALPHA, DECAY, EPS, BETAS = 4, 15, 0.02, 0.25, 0.1, 1e-6, (0.9, 0.999)
SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (32, 32), "near-square": (32, 31)}


def svd_with_fixed_signs(projector, weights, rank, type):
    """galore-torch's basis in float64 and with spectrain's signs.

    Its own is computed in float32 with LAPACK's signs, which differences of 1e-16 in W can flip at
    a refresh while the moments stay in the old coordinates.
    """
    if type == "left":
        return linalg.svd(weights)[0][:rank].mT
    return linalg.svd(weights.mT)[0][:rank]


def target(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(64, shape[1], generator=generator, dtype=torch.float64)
    y = torch.randn(64, shape[0], generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def nonlinear_loss(model, shape, step):
    x, y = target(shape)
    rows = slice(step % 4 * 16, step % 4 * 16 + 16)
    return F.mse_loss(torch.tanh(model(x[rows])), y[rows])


def start(shape):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(*shape[::-1], bias=False)).double()


def theirs(shape, steps, side, decay):
    model = start(shape)
    group = {"params": model.parameters(), "rank": RANK, "update_proj_gap": T, "scale": ALPHA}
    optimizer = GaLoreAdamW(
        [{**group, "proj_type": side}],
        lr=LR,
        eps=EPS,
        betas=BETAS,
        weight_decay=decay,
        no_deprecation_warning=True,
    )
    path = []
    for step in range(steps):
        nonlinear_loss(model, shape, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        path.append(model[0].weight.detach().clone())
    return path


def ours(shape, steps, side, decay):
    model = start(shape)
    # galore-torch decays after the update, torch's AdamW before it: the same with a smaller scale.
    scale = ALPHA * (1 - LR * decay)
    published = {"projector": "svd", "moments": "keep", "refresh": "same_step"}
    method = GaLore(RANK, refresh_every=T, scale=scale, side=side, **published)
    spectrain.apply(model, method, report=None)
    groups = spectrain.param_groups(model, LR, weight_decay=decay)
    optimizer = torch.optim.AdamW(groups, betas=BETAS)
    spectrain.attach(model, optimizer)
    path = []
    for step in range(steps):
        nonlinear_loss(model, shape, step).backward()
        for group in optimizer.param_groups:  # its ε stands beside the uncorrected second moment
            group["eps"] = EPS / math.sqrt(1 - BETAS[1] ** (step + 1))
        optimizer.step()
        optimizer.zero_grad()
        path.append(model[0].dense().detach().clone())
    return path


def departure(path, reference, shape):
    """Largest difference, relative to the movement so far."""
    W = start(shape)[0].weight.detach()
    return max(
        float((a - b).abs().max() / (b - W).abs().max())
        for a, b in zip(path, reference, strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right"])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_galore_follows_galore_torch_over_three_refreshes(shape, side, decay, monkeypatch):
    projector = galore_torch.galore_projector.GaLoreProjector
    monkeypatch.setattr(projector, "get_orthogonal_matrix", svd_with_fixed_signs)
    reference = theirs(shape, STEPS, side, decay)
    assert departure(ours(shape, STEPS, side, decay), reference, shape) < 1e-9


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_galore_follows_the_unchanged_package_until_its_second_refresh(shape):
    reference = theirs(shape, T, "std", DECAY)  # its float32 SVD is what is left of a difference
    assert departure(ours(shape, T, "std", DECAY), reference, shape) < 1e-4


def test_the_comparison_with_galore_torch_can_fail():
    shape = SHAPES["tall"]
    reference = theirs(shape, STEPS, "std", DECAY)
    assert departure(ours(shape, STEPS, "std", 0.0), reference, shape) > 1e-2


# --- peft ---------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 5, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("scaling", ["alpha/r", "rslora"])
def test_lora_has_pefts_function_gradients_and_merge(scaling):
    base = Block().double()
    ours = spectrain.apply(copy.deepcopy(base), LoRA(RANK, alpha=6.0, scaling=scaling), report=None)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6.0, target_modules=["up", "down"], use_rslora=scaling == "rslora"
    )
    reference = peft.get_peft_model(copy.deepcopy(base), config)
    pairs = []
    for name in ("up", "down"):
        layer, other = getattr(ours, name), getattr(reference.base_model.model, name)
        A, B = other.lora_A["default"].weight, other.lora_B["default"].weight
        assert A.shape == layer.A.shape
        assert B.shape == layer.B.shape
        assert other.scaling["default"] == layer.scale
        with torch.no_grad():
            B.data = torch.randn(B.shape, dtype=torch.float64)
            A.data = A.data.double()
            layer.A.copy_(A)
            layer.B.copy_(B)
        pairs += [(layer.A, A), (layer.B, B)]
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-12, atol=1e-12)
    ours(x).square().sum().backward()
    reference(x).square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-12)
    merged = reference.merge_and_unload()
    spectrain.merge(ours)
    for name in ("up", "down"):
        torch.testing.assert_close(getattr(ours, name).weight, getattr(merged, name).weight)


def test_loras_start_has_pefts_distribution():
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(256, 256))
    layer = spectrain.apply(copy.deepcopy(base), LoRA(128), report=None)[0]
    other = peft.get_peft_model(base, peft.LoraConfig(r=128, target_modules=["0"]))
    A = other.base_model.model[0].lora_A["default"].weight.detach()
    for statistic in (lambda a: a.abs().max(), lambda a: a.std()):
        torch.testing.assert_close(statistic(layer.A.detach()), statistic(A), rtol=0.01, atol=0)
    assert A.abs().max() <= 1 / 16


# --- torch.optim --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_full_rank_is_plain_training_bit_for_bit(kind):
    make = getattr(torch.optim, kind)
    plain = Block()
    net = copy.deepcopy(plain)
    spectrain.apply(net, FullRank(), report=None)
    ours = make(spectrain.param_groups(net, 0.01, weight_decay=0.1))
    spectrain.attach(net, ours)
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    decayed = {"params": matrices, "weight_decay": 0.1}
    reference = make([decayed, {"params": vectors, "weight_decay": 0.0}], lr=0.01)
    for step in range(6):
        x, y = batch(step)
        for model, optimizer in ((net, ours), (plain, reference)):
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    merged = spectrain.merge(net).state_dict()
    assert all(torch.equal(merged[name], value) for name, value in plain.state_dict().items())


@every_default
def test_float32_stays_close_to_float64(method):
    double, single = (Training(method, dtype=d).run(0, 4) for d in (torch.float64, torch.float32))
    assert single.losses == pytest.approx(double.losses, rel=1e-4)


# --- printed counts (Zhao et al. 2025; millions) -------------------------------------------------


def opt(hidden, layers, heads, **settings):
    return OPTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        **{"word_embed_proj_dim": hidden} | settings,
    )


def llama(hidden, inner, layers, heads):
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=False,
    )


PRINTED = {
    "OPT-125M": (opt(768, 12, 12), 64, (125.24, 50.92, 50.98)),
    "OPT-350M": (
        opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
        64,
        (331.20, 57.52, 57.67),
    ),
    "OPT-1.3B": (opt(2048, 24, 32), 64, (1315.75, 164.42, 164.71)),
    "LLaMA-130M": (llama(768, 2048, 12, 12), 64, (134.11, 60.38, 60.44)),
    "LLaMA-1.3B": (llama(2048, 5461, 24, 32), 128, (1339.08, 250.71, 251.05)),
}


@pytest.mark.parametrize("name", PRINTED)
def test_trainable_parameters_equal_the_printed_table(name):
    config, rank, printed = PRINTED[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    keys = list(model.state_dict())
    for method, expected in zip((FullRank(), LoRA(rank), SST(rank)), printed, strict=True):
        exclude = ("lm_head", "project_in", "project_out")
        spectrain.apply(model, method, exclude=exclude, report=None)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trainable / 1e6 == pytest.approx(expected, abs=0.01)
        spectrain.merge(model)
    assert list(model.state_dict()) == keys
