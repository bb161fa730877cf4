"""What is written under the pictures of a report."""

from collections.abc import Sequence

from spectrain.runs.plots import memory_picture
from spectrain.runs.scores import table_order
from spectrain.tasks.score import LOSS, Score

EMBEDDING = "embedding.png"  # in a run directory; the task draws it
_BAND = "mean over seeds, with a band of one standard deviation"


def captions(scores: Sequence[Score]) -> dict[str, str]:
    """By file name."""
    first, known = scores[0], table_order(scores)[0]
    better = "Higher" if known.higher_is_better else "Lower"
    if LOSS in scores:
        markers, validation = "Markers: validation loss, the last on more of the data.", ""
    else:
        markers = "Markers, where it was measured: validation loss."
        validation = " where it was measured,"
    return {
        "loss_by_step.png": f"Loss against step. Lines: training loss, smoothed, {_BAND}. {markers}",
        "loss_by_time.png": "The same losses against training time, evaluation excluded.",
        "score_by_step.png": f"Validation {first.title} against step: {_BAND}; where seeds stopped "
        "at different steps, as far as all of them went.",
        memory_picture(scores): f"Test {known.title} (mean, and standard deviation over seeds) "
        "against the memory of weights, gradients and optimizer state. "
        f"{better} and further left is better.",
        "loss.png": f"Training loss (smoothed), validation loss{validation} and learning rate "
        "against step.",
        "score.png": f"{', '.join(score.title for score in scores)} on validation data against "
        "step; a dotted line marks the best step, where one was chosen.",
        "spectra.png": "Singular values of weight matrices at the start (dashed) and at the end "
        "(solid).",
        EMBEDDING: "The nodes as the network places them, in two dimensions: hyperbolic ones in the "
        "Poincaré disk, around their centroid, others by their two leading directions.",
    }
