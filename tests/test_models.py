"""Presets have the papers' sizes; folders load, or say why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectrain.errors import RunError, UsageError
from spectrain.tasks.lm.models import build_model

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(name: str | Path, **options: Any) -> nn.Module:
    return build_model(str(name), **{"vocab_size": 300, "sequence_length": 16, **options})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [
        ("llama-130m", 32_000, 134.11),
        ("llama-1b", 32_000, 1339.08),
        ("opt-125m", 50_272, 125.24),
        ("opt-350m", 50_272, 331.20),
        ("opt-1.3b", 50_272, 1315.75),
    ],
)
def test_parameters_as_printed_in_the_papers(name: str, vocab_size: int, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(name, vocab_size=vocab_size, sequence_length=2048)
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", ["llama-9m", "OPT-125M"])
def test_a_preset_runs(name: str) -> None:
    model = build(name, overrides=SMALL, end_of_text=0)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.config.max_position_embeddings == 16
    assert model.config.eos_token_id == 0
    token_ids = torch.arange(32).reshape(2, 16)
    logits = model(input_ids=token_ids, use_cache=False).logits
    assert logits.shape == (2, 16, 300)
    assert torch.equal(logits, model(input_ids=token_ids, use_cache=False).logits)  # no dropout
    # Every token learns: none is taken for padding.
    logits.square().sum().backward()
    embedding = model.get_input_embeddings().weight
    assert (embedding.grad[:32].abs().sum(-1) > 0).all()


def test_embeddings_are_tied_as_the_family_has_it() -> None:
    for name, tied in (("llama-9m", False), ("opt-125m", True)):
        model = build(name, overrides=SMALL)
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same == tied


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = build("llama-9m", overrides=SMALL).state_dict()
    torch.manual_seed(5)
    second = build("llama-9m", overrides=SMALL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_overrides_take_the_type_of_what_they_replace() -> None:
    overrides = {
        **SMALL,
        "num_hidden_layers": "1",
        "rms_norm_eps": "1e-5",
        "tie_word_embeddings": "true",
        "rope_parameters": '{"rope_type": "default", "rope_theta": 500.0}',
    }
    config = build("llama-9m", overrides=overrides).config
    assert config.num_hidden_layers == 1
    assert config.head_dim == 8
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings is True
    assert config.rope_parameters["rope_theta"] == 500


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"num_hiden_layers": 2}, "no 'num_hiden_layers'; did you mean num_hidden_layers"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers cannot be 'two'; it is a number like 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1"),
        ({"attention_bias": "yes"}, "attention_bias cannot be 'yes'; it is true or false"),
        ({"hidden_size": 63}, "no model can be built with hidden_size=63: .*multiple"),
        ({"hidden_act": "wavy"}, "no model can be built with hidden_act=wavy"),
    ],
)
def test_impossible_overrides(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build("llama-9m", overrides=overrides)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"'lama-60m' is no preset.* did you mean .*llama-60m"):
        build("lama-60m")
    with pytest.raises(UsageError, match="presets are llama-9m, "):
        build("gpt")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", fail)
    with pytest.raises(RunError, match=r"no hub model by that name .*\(no route to host\)"):
        build("some-organisation/no-such-model")


@pytest.mark.parametrize("name", ["llama-9m", "opt-125m"])
def test_a_folder_with_weights(name: str, tmp_path: Path) -> None:
    model = build(name, overrides=SMALL)
    model.save_pretrained(tmp_path)
    loaded = build(tmp_path)
    assert loaded.training
    assert all(
        torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items()
    )
    with pytest.raises(UsageError, match=r"knows 300 tokens and the corpus has 301.*--tokenizer"):
        build(tmp_path, vocab_size=301)
    with pytest.raises(UsageError, match="at most 16 tokens at a time"):
        build(tmp_path, sequence_length=17)
    with pytest.raises(UsageError, match=r"lacks the weights of .*layers\.2"):
        build(tmp_path, overrides={"num_hidden_layers": 3})
    with pytest.raises(RunError, match="do not load"):
        build(tmp_path, overrides={"vocab_size": 400})


def test_a_folder_with_a_configuration_alone(tmp_path: Path) -> None:
    build("llama-9m", overrides=SMALL).config.save_pretrained(tmp_path)
    model = build(tmp_path, vocab_size=500, overrides={"num_hidden_layers": 1})
    assert model.get_input_embeddings().num_embeddings == 500
    assert model.config.num_hidden_layers == 1


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        build(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json .* cannot be used"):
        build(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="convert them to safetensors"):
        build(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"weights of .* do not load"):
        build(tmp_path, overrides=SMALL)
