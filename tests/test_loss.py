"""Cross-entropy by chunks of tokens is cross-entropy; blocks computed twice are the same blocks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cases import CASES, every_default, small, some_of
from tiny import LLAMA, OPT, Stopping, make_options, make_task, prose, rows, run, same
from torch import nn
from torch.nn.functional import cross_entropy

import spectrain
from spectrain import SST, FullRank
from spectrain.cli.main import main
from spectrain.errors import UsageError
from spectrain.method import registered
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import _check
from spectrain.runs.view import Silent
from spectrain.tasks.lm.evaluate import evaluate, token_loss
from spectrain.tasks.lm.loss import chunked_cross_entropy, decoder_and_head
from spectrain.tasks.lm.models import build_model

TOKENS, WIDTH, VOCABULARY = 13, 6, 11
BOTH = {"loss_chunk": 24, "gradient_checkpointing": True}
NEITHER = {"loss_chunk": 0, "gradient_checkpointing": False}


def parts(bias=True, dtype=torch.float64):
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    return hidden, head, torch.randint(VOCABULARY, (TOKENS,))


def gradients(loss, hidden, head):
    hidden.grad = None
    head.zero_grad()
    loss.backward()
    return [hidden.grad, *(p.grad for p in head.parameters())]


# --- the function ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_are_those_of_whole_logits(reduction, chunk, bias):
    hidden, head, targets = parts(bias)
    weights = torch.randn(TOKENS if reduction == "none" else (), dtype=torch.float64)
    found = chunked_cross_entropy(hidden, head, targets, chunk, reduction)
    exact = cross_entropy(head(hidden), targets, reduction=reduction)
    torch.testing.assert_close(found, exact)
    both = [gradients((weights * loss).sum(), hidden, head) for loss in (found, exact)]
    torch.testing.assert_close(both[0], both[1])
    with torch.no_grad():
        again = chunked_cross_entropy(hidden, head, targets, chunk, reduction)
    torch.testing.assert_close(again, exact.detach())


def test_large_logits_do_not_overflow():
    hidden, head, targets = parts(dtype=torch.float32)
    large = (hidden * 1e4).detach().requires_grad_()
    found = chunked_cross_entropy(large, head, targets, 4)
    torch.testing.assert_close(found, cross_entropy(head(large), targets))
    assert all(g.isfinite().all() for g in gradients(found, large, head))


@pytest.mark.parametrize("frozen", ["weight", "bias", "hidden"])
def test_what_does_not_train_gets_no_gradient(frozen):
    hidden, head, targets = parts()
    exact = gradients(cross_entropy(head(hidden), targets), hidden, head)
    (hidden if frozen == "hidden" else getattr(head, frozen)).requires_grad_(False)
    found = gradients(chunked_cross_entropy(hidden, head, targets, 4), hidden, head)
    for name, mine, its in zip(("hidden", "weight", "bias"), found, exact, strict=True):
        if name == frozen:
            assert mine is None
        else:
            torch.testing.assert_close(mine, its)


def test_a_second_backward_through_the_same_graph_is_refused():
    hidden, head, targets = parts()
    loss = chunked_cross_entropy(hidden, head, targets, 4)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_under_autocast_it_is_as_close_to_float32_as_whole_logits_are():
    hidden, head = torch.randn(256, 32), nn.Linear(32, 97)
    hidden.requires_grad_()
    targets = torch.randint(97, (256,))
    exact = gradients(cross_entropy(head(hidden), targets), hidden, head)
    with torch.autocast("cpu", torch.bfloat16):
        whole = cross_entropy(head(hidden).float(), targets)
        loss = chunked_cross_entropy(hidden, head, targets, 32)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, whole, rtol=1e-4, atol=0)
    found = gradients(loss, hidden, head)
    assert [g.dtype for g in found] == [torch.float32] * 3
    for mine, plain, its in zip(found, gradients(whole, hidden, head), exact, strict=True):
        error = (mine - its).norm() / its.norm()
        assert error < 1e-2
        assert error < 1.5 * (plain - its).norm() / its.norm()


@pytest.mark.parametrize("key", [key for key in registered() if key != "full"])
def test_a_head_that_a_method_has_exchanged_runs_its_own_way(key):
    hidden = torch.randn(TOKENS, 8, dtype=torch.float64, requires_grad=True)
    model = nn.Sequential(nn.Linear(8, VOCABULARY, dtype=torch.float64))
    head = spectrain.apply(model, small(registered()[key]), exclude=(), report=None)[0]
    targets = torch.randint(VOCABULARY, (TOKENS,))
    exact = gradients(cross_entropy(head(hidden), targets), hidden, head)
    found = gradients(chunked_cross_entropy(hidden, head, targets, 4), hidden, head)
    torch.testing.assert_close(found, exact)


def test_hooks_of_the_head_are_heard():
    hidden, head, targets = parts()
    head.register_forward_hook(lambda module, inputs, output: 2 * output)
    found = chunked_cross_entropy(hidden, head, targets, 4)
    torch.testing.assert_close(found, cross_entropy(head(hidden), targets))


def test_it_can_be_compiled():
    hidden, head, targets = parts(dtype=torch.float32)

    def loss():
        return chunked_cross_entropy(hidden, head, targets, 4)

    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(compiled(), loss())
    both = [gradients(f(), hidden, head) for f in (compiled, loss)]
    torch.testing.assert_close(both[0], both[1])


def test_whole_logits_are_never_there():
    """No operation makes a tensor of more numbers than the weight or one chunk's logits have."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in [out] if isinstance(t, torch.Tensor))])
            return out

    hidden = torch.randn(64, 4, requires_grad=True)
    head = nn.Linear(4, 100)
    with Largest():
        chunked_cross_entropy(hidden, head, torch.randint(100, (64,)), 8).backward()
    assert largest == 8 * 100


# --- models ----------------------------------------------------------------------------------------


def tiny(kind="llama", **options):
    torch.manual_seed(0)
    name, overrides = {"llama": ("llama-9m", LLAMA), "opt": ("opt-125m", OPT)}[kind]
    shape = overrides | {"num_hidden_layers": "2"}
    return build_model(name, vocab_size=50, sequence_length=16, overrides=shape, **options)


def batch():
    return torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(1))


def losses_and_gradients(model, chunk=0, accumulate=1, autocast=False):
    model.zero_grad()
    total = 0.0
    for ids in torch.chunk(batch(), accumulate):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = token_loss(model, ids, chunk=chunk) / accumulate
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [7, 24])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_model_learns_the_same_by_chunks(kind, chunk, accumulate):
    """OPT's head is tied to its embedding, so that two gradients meet in one weight."""
    model = tiny(kind)
    plain = losses_and_gradients(model, 0, accumulate)
    torch.testing.assert_close(losses_and_gradients(model, chunk, accumulate), plain)


def test_evaluation_by_chunks_is_the_same_and_leaves_flags_alone():
    model = tiny()
    tokens = torch.randint(50, (131,))
    model.model.layers[0].eval()
    random = torch.get_rng_state()
    plain, found = (evaluate(model, tokens, 16, 4, chunk=chunk) for chunk in (0, 5))
    assert found.loss == pytest.approx(plain.loss, abs=1e-6)
    assert found.tokens == plain.tokens
    assert model.training
    assert not model.model.layers[0].training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("key", ["sst", "galore"])
def test_an_exchanged_head_in_a_model(key):
    method = small(registered()[key])
    model = spectrain.apply(tiny(), method, exclude=(), report=None)
    plain = losses_and_gradients(model)
    torch.testing.assert_close(losses_and_gradients(model, 7), plain)


def test_a_compiled_model_keeps_its_compiled_blocks():
    model = tiny()
    compiled = torch.compile(model, backend="aot_eager")
    decoder, head = decoder_and_head(compiled, batch())
    assert type(decoder).__name__ == "OptimizedModule"
    assert head is model.lm_head
    assert decoder_and_head(compiled, batch())[0] is decoder  # and not compiled anew


def changed(model, change):
    forward = model.forward

    def other(**inputs):
        return SimpleNamespace(logits=change(forward(**inputs).logits))

    model.forward = other
    return model


@pytest.mark.parametrize(
    "change", [lambda x: 30 * torch.tanh(x / 30), lambda x: 0.5 * x, lambda x: x + 0.1]
)
def test_logits_that_are_not_the_heads_alone_are_refused(change):
    model = changed(tiny(), change)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM are not .*: give --loss-chunk 0"):
        token_loss(model, batch(), chunk=5)
    assert token_loss(model, batch()).isfinite()


def test_soft_capped_logits_of_gemma_are_refused():
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=None,
    )
    with pytest.raises(UsageError, match="Gemma2ForCausalLM are not its output head's alone"):
        token_loss(AutoModelForCausalLM.from_config(config), batch(), chunk=5)


def test_a_model_without_a_head_is_refused():
    class Bigram(nn.Module):
        def forward(self, input_ids, use_cache):
            raise AssertionError

    with pytest.raises(UsageError, match=r"Bigram has no output head .*: give --loss-chunk 0"):
        token_loss(Bigram(), batch(), chunk=5)


# --- gradient checkpointing ------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "opt"])
@every_default
def test_blocks_computed_twice_give_the_same_gradients(method, kind, autocast, accumulate):
    model = tiny(kind)
    twice = tiny(kind, gradient_checkpointing=True)
    twice.load_state_dict(model.state_dict())
    both = []
    for one in (model, twice):
        torch.manual_seed(1)
        spectrain.apply(one, method, report=None)
        spectrain.attach(one, torch.optim.AdamW(spectrain.param_groups(one, 1e-3)))
        both.append(losses_and_gradients(one, 0, accumulate, autocast))
    assert both[0][1].keys() == both[1][1].keys()
    torch.testing.assert_close(both[1], both[0])


def test_only_the_blocks_inputs_are_kept():
    def saved(model):
        sizes = 0

        def pack(tensor):
            nonlocal sizes
            sizes += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = token_loss(model, batch(), chunk=16)
        loss.backward()
        return sizes

    assert saved(tiny(gradient_checkpointing=True)) < 0.6 * saved(tiny())


def test_a_model_that_cannot_be_checkpointed_says_so(monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(
        UsageError, match="LlamaForCausalLM does not support gradient checkpointing"
    ):
        tiny(gradient_checkpointing=True)


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@some_of({key: CASES[key] for key in (*registered(), "lora-dropout")}, ("sst",))
def test_a_run_learns_the_same_with_both_as_with_neither(tmp_path, method, dtype):
    for folder, options in (("plain", NEITHER), ("both", BOTH)):
        run(tmp_path / folder, method, make_task(accumulate=2, **options), lr=1e-3, dtype=dtype)
    plain, both = rows(tmp_path / "plain"), rows(tmp_path / "both")
    assert [row.keys() for row in plain] == [row.keys() for row in both]
    close = {"rel": 1e-4} if dtype == "float32" else {"rel": 5e-3}
    for mine, its in zip(both, plain, strict=True):
        assert mine == pytest.approx(its, **close)


@some_of({key: CASES[key] for key in registered()}, ("sst",))
def test_a_run_whose_head_is_exchanged_too(tmp_path, method):
    """The method's events see the head's gradients from all chunks, as they see micro-batches'."""
    head = {"targets": r".*(proj|lm_head)", "exclude": "", "lr": 1e-3}
    for folder, options in (("plain", NEITHER), ("both", BOTH)):
        run(tmp_path / folder, method, make_task(accumulate=2, **options), **head)
    for mine, its in zip(rows(tmp_path / "both"), rows(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


@every_default
def test_a_run_with_both_that_is_stopped_ends_as_one_that_is_not(tmp_path, method):
    run(tmp_path / "whole", method, make_task(**BOTH))
    for step in (2, 3, 7):  # the events come at 3, 6, 9, 12
        task = make_task(kind=Stopping, **BOTH)
        task.at = step
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", method, task)
    run(tmp_path / "parts", method, make_task(**BOTH))
    same(tmp_path / "whole", tmp_path / "parts")


def test_the_command_trains_the_same_with_both_flags(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text(prose(), encoding="utf-8")
    monkeypatch.setenv("SPECTRAIN_CACHE", str(tmp_path / "cache"))
    command = [
        *("train", "lm", "--data", str(tmp_path / "prose.txt"), "--vocab-size", "300"),
        *(part for item in LLAMA.items() for part in ("--model-config", "=".join(item))),
        *("--sequence-length", "16", "--batch-size", "4", "--steps", "8", "--log-every", "2"),
        *("--eval-every", "4", "--final-tokens", "512", "--device", "cpu", "--method", "sst"),
        *("--method.rank", "4", "--method.resample-every", "3"),
    ]
    main([*command, "--loss-chunk", "0", "--out", str(tmp_path / "plain")])
    both = ("--loss-chunk", "24", "--gradient-checkpointing")
    main([*command, *both, "--out", str(tmp_path / "both")])
    plain, found = rows(tmp_path / "plain"), rows(tmp_path / "both")
    assert len(plain) == len(found) > 4
    for mine, its in zip(found, plain, strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("loss_chunk", 24), ("gradient_checkpointing", True)])
def test_runs_with_other_values_are_told_apart(tmp_path, name, value):
    run(tmp_path / "run", FullRank(), make_task(**NEITHER), steps=1)
    with pytest.raises(UsageError, match=f"a run with {name} = "):
        run(tmp_path / "run", FullRank(), make_task(**NEITHER | {name: value}), steps=1)


def test_a_comparison_looks_at_its_model_without_building_it(monkeypatch):
    """On the meta device tied weights are tied, too: such a head is refused before the first trial."""
    task = make_task("opt-125m", OPT)
    built = []
    build = type(task).build_model
    monkeypatch.setattr(
        type(task), "build_model", lambda self: built.append(build(self)) or built[-1]
    )
    _check(task, {"sst": SST(4)}, make_options(), Silent())
    assert all(p.is_meta for p in built[0].parameters())
    with pytest.raises(UsageError, match="lm_head: its weight is tied"):
        _check(
            task, {"sst": SST(4)}, make_options(exclude="", targets=".*(q_proj|lm_head)"), Silent()
        )
