"""Images from files: IDX, class folders, the bundled digits; how they are divided, and what is refused."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from spectrain.errors import UsageError
from spectrain.tasks.image.builtin import digits
from spectrain.tasks.image.files import load_images
from spectrain.tasks.image.idx import read_idx
from spectrain.tasks.image.images import divided, mean_and_deviation

SIZE = 5


def pixels_of(count, channels=None, seed=0):
    shape = (count, SIZE, SIZE) if channels is None else (count, SIZE, SIZE, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array):
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(folder, train=12, test=6, begin="", suffix="", first=0):
    """Files under MNIST's names (or EMNIST's), labels `first`, … in turn; (train, test) pixels."""
    folder.mkdir(exist_ok=True)
    held_out = "test" if begin else "t10k"
    found = []
    for part, count, seed in (("train", train, 0), (held_out, test, 1)):
        images = pixels_of(count, seed=seed)
        labels = (np.arange(count) % 3 + first).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = idx(array)
            path = folder / f"{begin}{part}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(raw) if suffix else raw)
        found.append(images)
    return found


def write_folders(folder, parts=("train",), classes=("cat", "dog"), count=4, mode="L", size=SIZE):
    for number, part in enumerate(parts):
        for label, name in enumerate(classes):
            own = folder / part / name if part else folder / name
            own.mkdir(parents=True)
            for i in range(count):
                channels = len(Image.new(mode, (1, 1)).getbands())
                shape = (size, size) if channels == 1 else (size, size, channels)
                values = np.full(shape, 20 * i + 50 * label + number, dtype=np.uint8)
                Image.fromarray(values).save(own / f"{i}.png")
    return folder


def refused(folder, **options):
    with pytest.raises(UsageError) as caught:
        load_images(str(folder), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- IDX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read(tmp_path, suffix):
    train, test = write_idx(tmp_path / "mnist", suffix=suffix)
    images = load_images(str(tmp_path / "mnist"))
    assert images.name == "mnist"
    assert images.classes == ("0", "1", "2")
    assert images.shape == (1, SIZE, SIZE)
    assert list(images.parts) == ["train", "test"]
    assert np.array_equal(images.parts["train"].inputs[:, 0].numpy(), train)
    assert np.array_equal(images.parts["test"].inputs[:, 0].numpy(), test)
    assert images.parts["train"].targets.tolist() == [0, 1, 2] * 4


def test_emnist_is_turned_upright_and_its_letters_begin_with_one(tmp_path):
    train, _ = write_idx(tmp_path / "x", begin="emnist-letters-", first=1)
    images = load_images(str(tmp_path / "x"))
    assert images.name == "emnist-letters"
    assert images.classes == ("1", "2", "3")
    assert images.parts["train"].targets.tolist() == [0, 1, 2] * 4
    assert np.array_equal(images.parts["train"].inputs[:, 0].numpy(), train.transpose(0, 2, 1))


def test_idx_files_without_a_test_part_are_divided(tmp_path):
    write_idx(tmp_path / "x", train=30)
    for path in (tmp_path / "x").glob("t10k*"):
        path.unlink()
    parts = divided(load_images(str(tmp_path / "x")), 0.1, 0.2, 0).parts
    assert {split: len(part.targets) for split, part in parts.items()} == {
        "train": 21,
        "validation": 3,
        "test": 6,
    }


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is no IDX file of bytes in 3 dimensions"),
        (b"\0\0\x08\x01" + b"\0" * 20, "is no IDX file of bytes in 3 dimensions"),
        (b"\0\0\x0d\x03" + b"\0" * 20, "fetch it again, or check its name"),
        (idx(pixels_of(4))[:-1], r"4 × 5 × 5 bytes follow, and there are 99; fetch it again"),
        (idx(pixels_of(4)) + b"x", "there are 101"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "is damaged"),
        (idx(pixels_of(0)), "is empty"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, raw, said):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=said):
        read_idx(path, 3)


def test_idx_files_that_do_not_fit_together_are_refused(tmp_path):
    folder = tmp_path / "x"
    write_idx(folder)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(11, dtype=np.uint8)))
    assert "has 12 images, and train-labels-idx1-ubyte 11 labels" in refused(folder)
    labels.write_bytes(idx(np.zeros(12, dtype=np.uint8)))
    assert "has the label 1, which no image to train on has" in refused(folder)
    labels.unlink()
    assert "lacks the file train-labels-idx1-ubyte (it may end in .gz)" in refused(folder)
    write_idx(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert "lacks the file t10k-labels-idx1-ubyte" in refused(folder)
    write_idx(folder)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((6, 4, 4), dtype=np.uint8)))
    assert "images of test are 4 × 4 grey, and those to train on 5 × 5 grey" in refused(folder)
    write_idx(folder, begin="emnist-digits-")
    assert "several data sets (MNIST's names, emnist-digits)" in refused(folder)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    write_idx(tmp_path / "x", suffix=".gz")
    path = tmp_path / "x" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert "is no intact .gz file" in refused(tmp_path / "x")


def test_images_of_one_class_are_refused(tmp_path):
    write_idx(tmp_path / "x", train=1, test=1)
    assert "images of one class, '0'" in refused(tmp_path / "x")


def test_size_is_for_class_folders_alone(tmp_path):
    write_idx(tmp_path / "x")
    assert "--size resizes the images of class folders" in refused(tmp_path / "x", size=4)
    with pytest.raises(UsageError, match="there is no --data"):
        load_images(None, 4)


# --- class folders -----------------------------------------------------------------------------


def test_class_folders_are_read(tmp_path):
    folder = write_folders(tmp_path / "x", ("train", "val", "test"), ("dog", "cat", "ant"))
    (folder / "notes").mkdir()
    images = load_images(str(folder))
    assert images.classes == ("ant", "cat", "dog")
    assert images.shape == (1, SIZE, SIZE)
    assert set(images.parts) == {"train", "validation", "test"}
    part = images.parts["validation"]
    assert part.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert part.inputs[:, 0, 0, 0].tolist() == [101, 121, 141, 161, 51, 71, 91, 111, 1, 21, 41, 61]
    assert images.notes == ("left out, since of no known name: notes",)


def test_class_folders_alone_are_divided(tmp_path):
    folder = write_folders(tmp_path / "x", ("",), count=10)
    whole = load_images(str(folder))
    assert list(whole.parts) == ["train"]
    parts = divided(whole, 0.2, 0.3, 7).parts
    assert [len(part.targets) for part in parts.values()] == [10, 4, 6]
    for part in parts.values():  # each class has its share
        assert part.targets.bincount().tolist() == [len(part.targets) // 2] * 2


def test_one_image_in_colour_makes_all_of_them_rgb(tmp_path):
    folder = write_folders(tmp_path / "x", ("",))
    Image.fromarray(pixels_of(1, 3)[0]).save(folder / "cat" / "0.png")
    images = load_images(str(folder))
    assert images.shape == (3, SIZE, SIZE)
    first, grey = images.parts["train"].inputs[:2]
    assert np.array_equal(first.permute(1, 2, 0).numpy(), pixels_of(1, 3)[0])
    assert torch.equal(grey[0], grey[1])


def test_images_of_several_sizes_are_resized_or_refused(tmp_path):
    folder = write_folders(tmp_path / "x", ("",))
    Image.new("L", (8, 6), 30).save(folder / "dog" / "9.png")
    text = refused(folder)
    assert f"{folder / 'dog' / '9.png'} is 6 × 8 pixels" in text
    assert "give --size, and they are resized" in text
    images = load_images(str(folder), 4)
    assert images.shape == (1, 4, 4)
    assert images.parts["train"].inputs[-1].unique().tolist() == [30]


def test_folders_that_hold_no_images_of_classes_are_refused(tmp_path):
    folder = write_folders(tmp_path / "x", ("train", "val"))
    (folder / "valid").mkdir()
    assert "has val and valid, both for validation" in refused(folder)
    (folder / "valid").rmdir()
    (folder / "val" / "cow").mkdir()
    assert "cow is of a class that has no folder to train on; those are cat, dog" in refused(folder)
    (folder / "val" / "cow").rmdir()
    (folder / "test").mkdir()
    assert "test holds no images" in refused(folder)
    (folder / "test").rmdir()
    (folder / "train" / "eel").mkdir()
    assert "eel holds no images (.png, .jpg, .jpeg …)" in refused(folder)
    (tmp_path / "y" / "train").mkdir(parents=True)
    assert "train holds no folders" in refused(tmp_path / "y")
    (tmp_path / "z").mkdir()
    assert "holds no known form of images" in refused(tmp_path / "z")
    (tmp_path / "z" / "a.png").write_bytes(b"")
    assert "is no folder" in refused(tmp_path / "z" / "a.png")
    assert "there is no folder" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(tmp_path, content):
    folder = write_folders(tmp_path / "x", ("",))
    (folder / "cat" / "bad.png").write_bytes(content)
    text = refused(folder)
    assert f"{folder / 'cat' / 'bad.png'} cannot be read as an image" in text
    assert text.endswith("replace or delete it")


def test_a_shortened_image_is_named(tmp_path):
    folder = write_folders(tmp_path / "x", ("",), size=64)
    Image.fromarray(pixels_of(1, 3, 2)[0]).save(folder / "cat" / "bad.png")
    raw = (folder / "cat" / "bad.png").read_bytes()
    (folder / "cat" / "bad.png").write_bytes(raw[: len(raw) // 2])
    assert "bad.png cannot be read as an image" in refused(folder)


def test_images_of_more_than_eight_bits_are_refused(tmp_path):
    folder = write_folders(tmp_path / "x", ("",))
    Image.fromarray(np.full((SIZE, SIZE), 4000, dtype=np.uint16)).save(folder / "cat" / "deep.png")
    assert "deep.png has more than 8 bits a pixel (mode I;16)" in refused(folder)


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read everything"
)
def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    folder = write_folders(tmp_path / "x", ("",))
    (folder / "cat").chmod(0)
    assert "cannot be read" in refused(folder)
    (folder / "cat").chmod(0o700)


# --- digits, division, scale -------------------------------------------------------------------


def test_the_digits():
    images = digits()
    assert images.shape == (1, 8, 8)
    assert len(images.parts["train"].targets) == 1797
    assert images.parts["train"].inputs.max() == 255
    assert digits().fingerprint == images.fingerprint


def test_the_division_follows_from_its_seed_and_keeps_every_image_once():
    parts = [divided(digits(), 0.1, 0.2, seed).parts for seed in (3, 3, 4)]
    assert torch.equal(parts[0]["test"].inputs, parts[1]["test"].inputs)
    assert not torch.equal(parts[0]["test"].inputs, parts[2]["test"].inputs)
    together = torch.cat([part.inputs for part in parts[0].values()]).flatten(1)
    whole = digits().parts["train"].inputs.flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, whole.tolist()))
    shares = parts[0]["validation"].targets.bincount() / digits().parts["train"].targets.bincount()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.003, rtol=0)


def test_a_division_that_leaves_nothing_is_refused(tmp_path):
    few = load_images(str(write_folders(tmp_path / "x", ("",), count=2)))
    with pytest.raises(UsageError, match="too few images of each class to divide them"):
        divided(few, 0.1, 0.1, 0)
    with pytest.raises(UsageError, match="together they must be below 1"):
        divided(few, 0.5, 0.5, 0)


def test_mean_and_deviation_are_those_of_each_channel():
    pixels = torch.from_numpy(pixels_of(1500, 3)).permute(0, 3, 1, 2)
    pixels[:, 2] = 7
    mean, deviation = mean_and_deviation(pixels)
    scaled = pixels.double() / 255
    torch.testing.assert_close(mean.double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = scaled.std((0, 2, 3), correction=0)
    expected[2] = 1  # without any deviation there is nothing to divide by
    torch.testing.assert_close(deviation.double(), expected, rtol=1e-6, atol=0)
