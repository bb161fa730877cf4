"""The task `image` on two processes, also with the weights divided over them."""

from __future__ import annotations

import pytest
from test_image_task import METHOD, VIT, make_task, run
from test_run_processes import close, joined

from spectrain.tasks.image.task import ImageClassification


def train_in_pair(directory, options):
    return joined(run, directory, METHOD, make_task(ImageClassification, **VIT), **options)


@pytest.mark.slow
def test_two_processes_train_as_one_and_show_the_same(pair, tmp_path):
    run(tmp_path / "one", task=make_task(ImageClassification, **VIT), steps=9)
    for name, shard in (("ddp", False), ("shard", True)):
        results = pair.call(train_in_pair, tmp_path / name, {"steps": 9, "shard": shard})
        assert results[0] == results[1]
        close(tmp_path / "one", tmp_path / name)
        assert (tmp_path / name / "mistakes.png").stat().st_size > 1000
