"""The plan of a step beside the step itself, for every method; what it says; what fits."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import every_default, small, some_of
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import spectrain
from spectrain import APOLLO, DCT, SST, Fira, FullRank, GaLore, LoRA, ReLoRA, UsageError
from spectrain.memory import rehearsal
from spectrain.memory.checkpointing import checkpoint_blocks
from spectrain.memory.fit import largest
from spectrain.memory.live import LiveBytes
from spectrain.memory.plan import in_words
from spectrain.memory.rehearsal import next_token_loss
from spectrain.method import Method, registered
from spectrain.optimizers import optimizer_maker

BATCH, LENGTH, WORDS = 3, 24, 160
WITHIN = 0.05
SIZES = {"batch_size": BATCH, "sequence_length": LENGTH}


def llama(blocks: int = 2, words: int = WORDS) -> nn.Module:
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).train()


def measured(
    method: Method,
    model: nn.Module,
    *,
    optimizer: Any = torch.optim.AdamW,
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    gradient_checkpointing: bool = False,
) -> tuple[int, dict[str, int]]:
    """Peak of a real step, the second one, and the bytes by category when gradients are complete."""
    if gradient_checkpointing:
        checkpoint_blocks(model)
    spectrain.apply(model, method, report=None)
    stepped = optimizer_maker(optimizer)(spectrain.param_groups(model, 1e-3))
    spectrain.attach(model, stepped)

    def accumulate_gradients() -> None:
        ids = torch.ones(BATCH * accumulate, LENGTH + 1, dtype=torch.int64)
        for part in torch.split(ids, BATCH):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = next_token_loss(model, part) / accumulate
            loss.backward()

    accumulate_gradients()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    stepped.step()
    stepped.zero_grad()
    with LiveBytes(model, stepped) as live:
        accumulate_gradients()
        sizes = dict(live.by_category)
        stepped.step()
    return live.peak, sizes | {"gradients": max(gradients, sizes["gradients"])}


def agree(method: Method, build: Callable[[], nn.Module] = llama, **how: Any) -> None:
    plan = spectrain.plan(build, method, **SIZES, **how)
    torch.manual_seed(0)
    peak, sizes = measured(method, build(), **how)
    exact = {line.part: line.bytes for line in plan.lines if line.exact}
    assert exact == {part: sizes[part] for part in exact}
    assert set(exact) == {"weights", "frozen", "gradients", "optimizer"}
    assert plan.step.bytes == pytest.approx(peak, rel=WITHIN)
    held = sum(exact.values())
    assert plan.step.bytes - held == pytest.approx(peak - held, rel=WITHIN, abs=0.01 * held)
    assert sum(line.at_peak for line in plan.lines) == plan.step.bytes


# --- plan and reality ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@every_default
def test_the_plan_is_what_a_step_takes(method, checkpointing, dtype):
    agree(method, gradient_checkpointing=checkpointing, dtype=dtype)


@pytest.mark.parametrize(
    "method",
    [SST(3, residual=True), SST(3, recompute=True), SST(3, frozen_dtype="bfloat16")],
    ids=["residual", "recompute", "frozen-bf16"],
)
def test_forms_of_sst(method):
    agree(method)


@every_default
def test_accumulation(method):
    agree(method, accumulate=3)


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "RMSprop", "Adagrad"])
def test_other_optimizers(name):
    agree(SST(3), optimizer=name)


def test_an_optimizer_made_by_a_function():
    agree(LoRA(3), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def test_another_family_of_models():
    config = OPTConfig(
        vocab_size=WORDS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        attn_implementation="sdpa",
        dropout=0.0,
    )
    agree(SST(3), lambda: OPTForCausalLM(config).train())


@some_of({key: small(cls) for key, cls in registered().items()}, ("sst",))
def test_blocks_multiplied_are_blocks_measured(method, monkeypatch):
    def build() -> nn.Module:
        return llama(5)

    quick = spectrain.plan(build, method, **SIZES, gradient_checkpointing=True)
    monkeypatch.setattr(rehearsal, "MORE", 5)
    assert (
        quick.to_json()
        == spectrain.plan(build, method, **SIZES, gradient_checkpointing=True).to_json()
    )


def test_a_refresh_needs_the_dense_gradients():
    plan = spectrain.plan(llama, GaLore(2), **SIZES, gradient_checkpointing=True)
    spread = spectrain.plan(llama, GaLore(2, stagger=True), **SIZES, gradient_checkpointing=True)
    (refresh,) = plan.events
    assert refresh.name == "refresh"
    assert refresh.bytes > plan.step.bytes
    assert plan.step.bytes <= spread.peak < plan.peak == refresh.bytes
    assert "stagger=True" in plan.advice


def test_dense_gradients_of_every_step_are_counted_and_layerwise_frees_them():
    tiny = {"batch_size": 1, "sequence_length": 1}
    matrices = 4 * sum(p.numel() for n, p in llama().named_parameters() if "proj" in n)
    for method in (Fira(2), APOLLO(2), DCT(2)):
        plan = spectrain.plan(llama, method, **tiny)
        kept = plan.line("cached").bytes
        assert matrices <= kept < 1.25 * matrices  # with P, or the table of cosines
        assert "--layerwise" in plan.advice or plan.dominant != "kept by the layers for a step"
        spread = spectrain.plan(llama, method, **tiny, layerwise=True)
        assert spread.peak < plan.peak - matrices / 2
        assert "--layerwise" not in spread.advice


def test_events_are_named_and_the_workspace_of_decompositions_counted():
    (event,) = spectrain.plan(llama, SST(2), **SIZES).events
    assert event.name == "re-SVD, resampling"
    (event,) = spectrain.plan(llama, ReLoRA(2), **SIZES).events
    assert event.name == "merge, restart"

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 1))

    plan = spectrain.plan(
        wide, SST(1), **SIZES, loss=lambda model, ids: model(torch.zeros(2, 400)).sum()
    )
    (event,) = plan.events
    assert event.update == event.bytes > plan.step.update
    assert event.parts["workspace"] >= 4 * (5 * 400 * 400)


def test_phases_are_planned_for_the_largest():
    plan = spectrain.plan(llama, ReLoRA(2, warm_start=100), **SIZES)
    assert plan.peak == spectrain.plan(llama, FullRank(), **SIZES).peak


def test_any_model_with_a_loss_of_its_own():
    def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return model(torch.zeros(len(ids), 8)).square().mean()

    plan = spectrain.plan(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)),
        SST(2),
        **SIZES,
        loss=loss,
    )
    assert plan.line("logits").bytes == 0
    assert plan.peak > 0


def test_a_model_given_as_it_is_stays_as_it_is():
    model = llama(6)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    given = spectrain.plan(model, LoRA(2), **SIZES)
    assert torch.equal(random, torch.get_rng_state())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert given.to_json() == spectrain.plan(lambda: llama(6), LoRA(2), **SIZES).to_json()


def test_nothing_is_allocated():
    """A model of 6.7 · 10⁹ parameters, 27 GB, in a process that stays far below."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = LlamaConfig(vocab_size=32000, num_hidden_layers=3, attn_implementation="sdpa")
    plan = spectrain.plan(
        lambda: LlamaForCausalLM(config), LoRA(8), batch_size=1, sequence_length=2048
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert plan.line("frozen").bytes > 2**31
    assert grown < 2**18


# --- what it says ----------------------------------------------------------------------------------


def test_dominant_part_and_what_to_switch_on():
    def advice(method: Method, words: int = WORDS, **how: Any) -> tuple[str, str]:
        plan = spectrain.plan(lambda: llama(1, words), method, **{**SIZES, **how})
        return plan.dominant, plan.advice

    assert advice(LoRA(2), batch_size=64) == (
        "activations",
        "gradient checkpointing (--gradient-checkpointing)",
    )
    dominant, text = advice(LoRA(2), words=2000, batch_size=64)
    assert dominant == "logits and their gradient"
    assert "--loss-chunk" in text
    dominant, text = advice(LoRA(2), batch_size=64, gradient_checkpointing=True)
    assert (dominant, text.split()[:2]) == ("activations", ["a", "smaller"])
    tiny = {"batch_size": 1, "sequence_length": 1}
    assert advice(FullRank(), **tiny) == (
        "optimizer state",
        "a low-rank method (sst, relora, lora, galore)",
    )
    dominant, text = advice(SST(1), **tiny)
    assert text.startswith("residual=True") or dominant != "frozen weights and buffers"


def test_plan_as_text_and_as_json():
    plan = spectrain.plan(llama, SST(2), **SIZES)
    text = str(plan)
    assert "optimizer state" in text
    assert "exact" in text
    assert "≈" in text
    found = json.loads(json.dumps(plan.to_json()))
    assert found["method"]["name"] == "sst"
    assert found["parts"]["weights"]["exact"] is True
    assert found["parts"]["activations"]["exact"] is False
    assert found["step"]["bytes"] == sum(found["step"]["parts"].values())
    assert found["peak"] >= found["step"]["bytes"]


def test_bytes_for_people():
    assert [in_words(n) for n in (12, 2048, 3 * 2**20, 5.5 * 2**30)] == [
        "12 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.50 GiB",
    ]


# --- refusals --------------------------------------------------------------------------------------


class Reads(torch.optim.SGD):
    """An optimizer that hands its parameters to code which needs their numbers."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["params"][0].detach().numpy()
        return super().step(closure)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"optimizer": "AdamWW"}, "did you mean AdamW"),
        ({"optimizer": Reads}, "cannot be planned"),
        ({"optimizer": "LBFGS"}, "LBFGS"),
        ({"optimizer": "SparseAdam"}, "sparse gradients"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dtype": torch.int8}, "dtype"),
        ({"targets": ("q_prj",)}, "did you mean .*q_proj"),
    ],
)
def test_what_cannot_be_planned_is_refused(how, message):
    with pytest.raises(UsageError, match=message):
        spectrain.plan(llama, SST(2), **{**SIZES, **how})


def test_impossible_ranks_and_models_without_checkpointing_are_refused():
    with pytest.raises(UsageError, match="rank is 99"):
        spectrain.plan(llama, SST(99), **SIZES)
    with pytest.raises(UsageError, match="does not support gradient checkpointing"):
        spectrain.plan(
            lambda: nn.Sequential(nn.Linear(4, 4)), SST(2), **SIZES, gradient_checkpointing=True
        )


# --- what fits -------------------------------------------------------------------------------------


class Sized:
    """A plan with nothing but a peak."""

    def __init__(self, peak: int) -> None:
        self.peak = peak


@pytest.mark.parametrize(
    "peak",
    [
        lambda n: 100 + 7 * n,
        lambda n: max(500 + n, 100 + 7 * n),
        lambda n: 100 + n * n,
        lambda n: 100 + (n if n < 40 else 3 * n),
        lambda n: 120,
    ],
)
@pytest.mark.parametrize("budget", [99, 108, 301, 555, 10_000])
def test_the_largest_that_fits(peak, budget):
    tried = []

    def make(n: int) -> Any:
        tried.append(n)
        return Sized(peak(n))

    best = max((n for n in range(1, 1001) if peak(n) <= budget), default=0)
    found, plan = largest(make, budget, 1000)
    assert found == best
    assert plan.peak == peak(max(found, 1))
    assert len(tried) == len(set(tried)) <= 20


def test_a_batch_that_fits_and_the_next_that_does_not():
    def at(batch: int) -> Any:
        return spectrain.plan(lambda: llama(1), SST(2), batch_size=batch, sequence_length=LENGTH)

    budget = at(9).peak + 100
    batch, plan = largest(at, budget, 2**20)
    assert batch == 9
    assert plan.peak <= budget < at(10).peak
