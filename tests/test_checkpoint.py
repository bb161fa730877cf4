"""Checkpoints that are damaged, foreign or malformed are never used, and the reason is said."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Recorder, run, same, stopped_at

from spectrain import SST, LoRA
from spectrain.errors import RunError, SpectrainWarning
from spectrain.runs import checkpoint
from spectrain.runs.directory import identity
from spectrain.runs.files import read_json, write_json

METHOD = SST(4, resample_every=3)
OPTIONS = {"checkpoint_every": 5, "log_every": 1}


def steps(directory):
    return sorted(checkpoint.on_disk(directory / "checkpoints"))


def reseal(folder):
    """Make size and sum of every file agree with what it holds now."""
    manifest = read_json(folder / "manifest.json")
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / "manifest.json", manifest)


# --- damage --------------------------------------------------------------------------------------


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def flip(folder):
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def drop_manifest(folder):
    (folder / "manifest.json").unlink()


def drop_file(folder):
    (folder / "state.json").unlink()


def edit(**changes):
    def damage(folder):
        manifest = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", manifest | changes)

    return damage


def garble_manifest(folder):
    (folder / "manifest.json").write_text("[" * 100_000)


def name_another_file(folder):
    (folder.parent / "secret").write_text("secret")
    manifest = read_json(folder / "manifest.json")
    manifest["files"]["../secret"] = manifest["files"]["state.json"]
    write_json(folder / "manifest.json", manifest)


def link_a_file(folder):
    (folder / "state.json").rename(folder.parent / "elsewhere.json")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere.json")


def link_the_folder(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def count_in_words(folder):
    manifest = read_json(folder / "manifest.json")
    manifest["files"]["state.json"]["bytes"] = "many"
    write_json(folder / "manifest.json", manifest)


def put_a_folder_in_place(folder):
    (folder / "probe.safetensors").unlink()
    (folder / "probe.safetensors").mkdir()


DAMAGES = {
    truncate: "damaged (model.safetensors has the wrong size)",
    flip: "damaged (optimizer.safetensors has changed)",
    drop_manifest: "damaged (its manifest is missing)",
    drop_file: "damaged (state.json is missing)",
    edit(files={}): "damaged (its manifest lacks model.safetensors)",
    edit(files=[]): "damaged (its manifest cannot be read ('files' is not an object))",
    edit(step=5): "damaged (its manifest says step 5)",
    edit(format=2): "has format 2, where this version reads 3, and is passed over",
    edit(run="another"): "belongs to another run and is passed over",
    garble_manifest: "damaged (its manifest cannot be read (it is not JSON))",
    name_another_file: "damaged (its manifest names '../secret', which is no file of a checkpoint)",
    link_a_file: "damaged (state.json is no plain file)",
    link_the_folder: "damaged (it is no plain folder)",
    put_a_folder_in_place: "damaged (probe.safetensors is no plain file)",
    count_in_words: "damaged (its manifest cannot be read ('bytes' is not a whole number))",
}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run stopped at step 10, with checkpoints at 5 and 10, and the same run unbroken."""
    folder = tmp_path_factory.mktemp("unfinished")
    run(folder / "whole", METHOD, **OPTIONS)
    stopped_at(folder / "parts", METHOD, 9, **OPTIONS)
    return folder


@pytest.mark.parametrize(("damage", "said"), DAMAGES.items(), ids=DAMAGES.values())
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, unfinished, damage, said
):
    shutil.copytree(unfinished / "parts", tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step-00000010")
    name = identity(read_json(tmp_path / "run" / "config.json"))
    search = checkpoint.newest(tmp_path / "run" / "checkpoints", name)
    assert search.found.step == 5
    assert said in search.passed_over[0]


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path, unfinished):
    shutil.copytree(unfinished / "parts", tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-00000010")
    (tmp_path / "run" / "metrics.jsonl").write_text("lost")  # the checkpoint has its rows
    view = Recorder()
    with pytest.warns(SpectrainWarning, match="step-00000010 is damaged"):
        run(tmp_path / "run", METHOD, view=view, **OPTIONS)
    assert "from step 5" in view.said[0]
    same(unfinished / "whole", tmp_path / "run")
    assert steps(tmp_path / "run") == steps(unfinished / "whole") == [5, 10, 12]


def test_with_no_intact_checkpoint_left_a_run_says_so_and_begins_again(tmp_path, unfinished):
    shutil.copytree(unfinished / "parts", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        flip(folder)
    view = Recorder()
    with pytest.warns(SpectrainWarning, match="is damaged"):
        run(tmp_path / "run", METHOD, view=view, **OPTIONS)
    assert view.said[0].startswith("no intact checkpoint in")
    assert view.said[0].endswith("starting again from step 0")
    same(unfinished / "whole", tmp_path / "run")


def test_checkpoints_of_other_runs_alone_are_not_overwritten(tmp_path, unfinished):
    run(tmp_path / "run", LoRA(4), **OPTIONS)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(unfinished / "parts" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match="step-00000010 belongs to another run") as caught:
        run(tmp_path / "run", LoRA(4), **OPTIONS)
    assert "move away what is there" in str(caught.value)
    assert steps(tmp_path / "run") == [5, 10]


def wrong_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(31)
    save_file(tensors, folder / "model.safetensors")


def wrong_type(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
    save_file(tensors, folder / "model.safetensors")


def missing_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def wrong_moment(folder):
    tensors = load_file(folder / "optimizer.safetensors")
    tensors["model.norm.weight/exp_avg"] = torch.zeros(2, 16)
    save_file(tensors, folder / "optimizer.safetensors")


def missing_moment(folder):
    tensors = load_file(folder / "optimizer.safetensors")
    del tensors["model.norm.weight/exp_avg_sq"]
    save_file(tensors, folder / "optimizer.safetensors")


def unknown_parameter(folder):
    tensors = load_file(folder / "optimizer.safetensors")
    tensors["nobody/exp_avg"] = torch.zeros(2)
    save_file(tensors, folder / "optimizer.safetensors")


def no_tensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04 no safetensors")


def other_state(folder):
    state = read_json(folder / "state.json")
    write_json(folder / "state.json", state | {"interval": 3})


def other_phase(folder):
    state = read_json(folder / "state.json")
    write_json(folder / "state.json", state | {"phase": 7})


MISFITS = {
    wrong_shape: r"model.safetensors: model.norm.weight is float32 \[31\], where this run needs "
    r"float32 \[32\]",
    wrong_type: r"model.norm.weight is float64 \[32\], where this run needs float32 \[32\]",
    missing_weight: "model.norm.weight is missing",
    wrong_moment: r"optimizer.safetensors: model.norm.weight/exp_avg is float32 \[2, 16\], where",
    missing_moment: "for model.norm.weight it has exp_avg, step, where AdamW keeps exp_avg, exp_avg_sq",
    unknown_parameter: "nobody is no parameter that this run trains",
    no_tensors: "model.safetensors cannot be read",
    other_state: r"state.json is damaged \('interval' is not an object\)",
    other_phase: "there is no phase 7",
}


@pytest.mark.parametrize(
    ("change", "said"), MISFITS.items(), ids=lambda v: getattr(v, "__name__", "")
)
def test_what_does_not_fit_is_one_sentence_though_its_sums_are_right(
    tmp_path, unfinished, change, said
):
    shutil.copytree(unfinished / "parts", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000010"
    change(folder)
    reseal(folder)
    with pytest.raises(RunError, match=said) as caught:
        run(tmp_path / "run", METHOD, **OPTIONS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["SGD", "Adafactor", "RMSprop", "ASGD"])
def test_other_optimizers_state_is_known_too(tmp_path, optimizer):
    run(tmp_path / "whole", LoRA(4), optimizer=optimizer)
    stopped_at(tmp_path / "parts", LoRA(4), 6, optimizer=optimizer)
    run(tmp_path / "parts", LoRA(4), optimizer=optimizer)
    same(tmp_path / "whole", tmp_path / "parts")
