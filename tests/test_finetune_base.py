"""The pretrained model: cut, frozen, refused."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_base import causal, encoder, options, tokenizer, write_causal

from spectrain.errors import UsageError
from spectrain.tasks.finetune.base import Base
from spectrain.tasks.finetune.options import FinetuneOptions


def test_a_model_is_cut_to_its_first_layers():
    whole, cut = (Base.find(options(keep_layers=n)) for n in (None, 1))
    assert "first 1 of 2 layers" in cut.describe()
    first, all_ = cut.build().state_dict(), whole.build().state_dict()
    assert {name for name in all_ if ".layers.1." not in name} == first.keys()
    assert all(torch.equal(all_[name], tensor) for name, tensor in first.items())


def test_only_what_should_train_trains():
    frozen = Base.find(options()).build()
    assert not any(p.requires_grad for p in frozen.parameters())
    every = Base.find(options(train_ordinary=True)).build()
    assert all(p.requires_grad for p in every.parameters())
    base = Base.find(options(model=encoder(), max_length=64))
    for model in (base.build(("a", "b")), base.skeleton(("a", "b"))):
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        kinds = ("bert.pooler.dense", "classifier")
        assert names == {f"{kind}.{part}" for kind in kinds for part in ("weight", "bias")}


def test_a_new_head_follows_from_the_seed():
    base = Base.find(options(model=encoder(), max_length=64))
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(base.build(("a", "b")).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    before = torch.get_rng_state()
    assert all(p.is_meta for p in base.skeleton(("a", "b")).parameters())
    assert torch.equal(before, torch.get_rng_state())


def edited(folder, name, **changes):
    path = folder / name
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_models_that_cannot_be_tuned(tmp_path, monkeypatch):
    def refused(said, **values):
        with pytest.raises(UsageError, match=said) as caught:
            Base.find(options(**values))
        assert "\n" not in str(caught.value)

    with pytest.raises(UsageError, match="there is no model to tune; give --model"):
        FinetuneOptions()
    refused("is no transformers folder", model="nowhere")
    refused("is of 2 layers", keep_layers=3)
    refused("takes at most 256 tokens at a time, less than --max-length of 512", max_length=512)
    (tmp_path / "a.bin").write_bytes(b"")
    refused(r"a file of weights must be .gguf", model=str(tmp_path / "a.bin"))
    refused("as a pickle", model=str(tmp_path))
    (tmp_path / "empty").mkdir()
    refused("holds no weights", model=str(tmp_path / "empty"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_bytes(b"GGUF")
    refused("holds 2 .gguf files", model=str(tmp_path / "empty"))
    monkeypatch.setattr("spectrain.tasks.pretrained.find_spec", lambda name: None)
    refused("pip install gguf", model=str(tmp_path / "empty" / "a.gguf"))

    folder = write_causal(tmp_path / "model")
    larger = tokenizer()
    larger.add_tokens([f"<{i}>" for i in range(9)])
    larger.save_pretrained(folder)
    refused("they are not of one model", model=str(folder))
    folder = write_causal(tmp_path / "endless")
    edited(folder, "tokenizer_config.json", eos_token=None)
    refused("no padding token and no end-of-text token", model=str(folder))


def test_a_wrong_base_is_named(tmp_path):
    folder = write_causal(tmp_path / "model")
    edited(folder, "config.json", num_hidden_layers=3)
    with pytest.raises(UsageError, match="lacks the weights of 9 parameters"):
        Base.find(options(model=str(folder))).build()
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(Exception, match=r"the weights of .* do not load") as caught:
        Base.find(options(model=str(folder))).build()
    assert "\n" not in str(caught.value)


def test_the_hash_of_the_base_knows_its_weights(tmp_path):
    folder = write_causal(tmp_path / "model")
    one = Base.find(options(model=str(folder)))
    assert one.digest == Base.find(options(model=causal())).digest
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert Base.find(options(model=str(folder))).digest != one.digest


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"template": "no place"}, "it must hold {prompt} once"),
        ({"classify": True, "packing": True}, "--packing is of prompts and responses"),
        ({"answer": "text"}, "allowed are auto, number, none"),
        ({"batch_size": 0}, "1 or more"),
    ],
)
def test_settings_that_cannot_be(values, said):
    with pytest.raises(UsageError, match=said):
        options(**values)
