"""transformers' Trainer: an interrupted run equals an unbroken one, an unmerged model is never mistaken."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import RANK, VARIANTS, every_default_matrix
from safetensors.torch import load_file
from tiny import causal_model
from tokenizers import Tokenizer, models
from torch import nn
from toys import same
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import spectrain
from spectrain.attachment import is_attached
from spectrain.integrations import transformers as integration
from spectrain.integrations.transformers import SpectrainCallback, save_merged
from spectrain.surgery import parametrized

STEPS = 8
SST = spectrain.SST(RANK, resample_every=3)


def tiny(method, seed=0, kind="llama", tied=False):
    return spectrain.apply(causal_model(kind, tied, seed), method, report=None)


TOKENS = torch.randint(32, (40, 9), generator=torch.Generator().manual_seed(0))


def trainer(folder, method, *, seed=0, save_steps=0, callbacks=(), model=None, tokenizer=None):
    """Trainer on a tiny model, two micro-batches a step."""
    model = tiny(method, seed) if model is None else model
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=1e-2, weight_decay=0.1))
    return Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in TOKENS],
        optimizers=(optimizer, None),
        callbacks=[SpectrainCallback(), *callbacks],
        processing_class=tokenizer,
    )


def result(trained):
    """Weights, optimizer state and logged losses."""
    losses = {row["step"]: row["loss"] for row in trained.state.log_history if "loss" in row}
    return [trained.model.state_dict(), trained.optimizer.state_dict(), losses]


@every_default_matrix
def test_trainer_resumes_exactly(method, tmp_path, only_safe_loading):
    unbroken = trainer(tmp_path, method, save_steps=1)
    unbroken.train()
    assert {int(layer.clock) for _, layer in parametrized(unbroken.model)} == {STEPS}
    for step in (2, 3, 4):  # before, at and after events
        resumed = trainer(tmp_path, method, seed=step)  # and without saving, which changes nothing
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same(result(resumed), result(unbroken)), step


@pytest.mark.parametrize("name", ["lora-dropout", "sst-frozen-s", "relora-prune-random"])
def test_trainer_resumes_exactly_with_options(name, tmp_path):
    unbroken = trainer(tmp_path, VARIANTS[name], save_steps=5)
    unbroken.train()
    resumed = trainer(tmp_path, VARIANTS[name], seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(result(resumed), result(unbroken))


class Fails(TrainerCallback):
    """Raises after step 5, once."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and not hasattr(self, "failed"):
            self.failed = True
            raise RuntimeError("the machine is gone")


@pytest.mark.parametrize("method", [SST, spectrain.GaLore(RANK, refresh_every=3)])
def test_the_same_trainer_goes_on_after_an_error(method, tmp_path):
    """Here the checkpoint is loaded into a model that is still attached."""
    unbroken = trainer(tmp_path / "unbroken", method)
    unbroken.train()
    broken = trainer(tmp_path / "broken", method, save_steps=4, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="the machine is gone"):
        broken.train()
    assert is_attached(broken.model)
    broken.train(resume_from_checkpoint=True)
    assert not is_attached(broken.model)
    assert same(result(broken), result(unbroken))


def letters():
    """A tokenizer of 26 letters."""
    vocabulary = {chr(97 + i): i for i in range(26)} | {"?": 26}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")


@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", False), ("llama", True), ("opt", True)], ids=str
)
def test_the_merged_model_lies_beside_each_save(kind, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(integration, "_SHARD", "8KB")  # several shards
    model = tiny(SST, kind=kind, tied=tied)
    trainer(tmp_path, SST, model=model, save_steps=STEPS, tokenizer=letters()).train()
    merged = tmp_path / f"checkpoint-{STEPS}" / "merged"
    assert len(list(merged.glob("*.safetensors"))) > 1
    assert not list(merged.parent.glob(".partial*"))
    loaded, report = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.architectures == [type(model).__name__]
    assert AutoTokenizer.from_pretrained(merged).vocab_size == 27
    before = copy.deepcopy(model.state_dict())
    expected = spectrain.merge(copy.deepcopy(model))
    assert same(model.state_dict(), before)
    assert same(dict(loaded.state_dict()), dict(expected.state_dict()))
    tied_now = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied_now is tied


LOADERS = [AutoModelForCausalLM, LlamaForCausalLM]


def test_an_unmerged_checkpoint_is_refused_with_a_sentence(tmp_path):
    trained = trainer(tmp_path, SST, save_steps=STEPS)
    trained.train()
    for loader in LOADERS:
        with pytest.raises(ValueError, match="unmerged spectrain model - load the folder merged"):
            loader.from_pretrained(tmp_path / f"checkpoint-{STEPS}")


@pytest.mark.parametrize("shard", ["50GB", "8KB"], ids=["one-file", "shards"])
def test_whatever_else_trainer_saves_of_an_unmerged_model_is_refused(shard, tmp_path, caplog):
    """`save_model` calls no callback, so the weights' file itself has to be unfit."""
    trained = trainer(tmp_path, SST)
    trained.model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    for loader in LOADERS:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            loader.from_pretrained(tmp_path / "saved")
    logger.removeHandler(caplog.handler)
    assert "unmerged spectrain model - load the folder merged" in caplog.text
    plain = LlamaForCausalLM(trained.model.config)
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain.load_state_dict(trained.model.state_dict(), strict=False)
    spectrain.merge(trained.model)
    trained.save_model(str(tmp_path / "merged"))
    assert LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)[1]


def test_trainer_resumes_from_shards(tmp_path):
    unbroken = trainer(tmp_path, SST, save_steps=4)
    unbroken.train()
    folder = tmp_path / "checkpoint-4"
    halfway = tiny(SST, seed=5)
    state = load_file(folder / "model.safetensors")
    halfway.load_state_dict({n: v for n, v in state.items() if n in halfway.state_dict()})
    SpectrainCallback().on_init_end(
        SimpleNamespace(fsdp=None, deepspeed=None), None, None, model=halfway
    )
    (folder / "model.safetensors").unlink()
    halfway.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    resumed = trainer(tmp_path, SST, seed=1)
    resumed.train(resume_from_checkpoint=str(folder))
    assert same(result(resumed), result(unbroken))


def test_a_full_rank_model_is_ordinary_in_every_save(tmp_path):
    trained = trainer(tmp_path, spectrain.FullRank())
    trained.save_model(str(tmp_path / "saved"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    weights = loaded.state_dict()
    assert all(
        torch.equal(weights[n], v) for n, v in trained.model.state_dict().items() if n in weights
    )


def test_save_merged_refuses_an_ordinary_model(tmp_path):
    with pytest.raises(spectrain.UsageError, match="no exchanged layers"):
        save_merged(nn.Linear(2, 2), tmp_path)


def test_the_callback_refuses_what_it_cannot_do(tmp_path):
    for given in (
        {"fsdp": "full_shard", "deepspeed": None},
        {"fsdp": "", "deepspeed": "zero.json"},
    ):
        with pytest.raises(spectrain.UsageError, match="use DDP"):
            SpectrainCallback().on_init_end(SimpleNamespace(**given), None, None, model=None)
    own = trainer(tmp_path, SST)
    own.optimizer = None  # Trainer makes one, without groups of ours
    with pytest.raises(spectrain.UsageError, match=r"spectrain\.param_groups"):
        own.train()


PAIR = """
import sys
from pathlib import Path

import torch
from test_integrations import SST, result, same, trainer

folder = Path(sys.argv[1])
unbroken = trainer(folder, SST, save_steps=3)
unbroken.train()
resumed = trainer(folder, SST, seed=1)
resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
assert same(result(resumed), result(unbroken))
torch.save(unbroken.model.state_dict(), folder / f"{unbroken.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_resume_exactly_and_write_one_merged_model(tmp_path):
    program = tmp_path / "pair.py"
    program.write_text(PAIR)
    launch = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    run = subprocess.run(
        [sys.executable, *launch, str(program), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(*states)
    merged = load_file(tmp_path / f"checkpoint-{STEPS}" / "merged" / "model.safetensors")
    model = tiny(SST)
    model.load_state_dict({n: v for n, v in states[0].items() if n in model.state_dict()})
    assert same(merged, dict(spectrain.merge(model).state_dict()))
