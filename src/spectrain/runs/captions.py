"""What is written under the pictures of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

from spectrain.runs.plots import memory_picture
from spectrain.runs.scores import table_order
from spectrain.tasks.score import LOSS, Score


@dataclass(frozen=True)
class Exhibit:
    """A picture in a run directory, which the task drew of the trained model."""

    file: str
    caption: str  # in the report of a run
    heading: str  # of its section in the report of a comparison
    lead: str  # the sentence that begins this section
    of_arm: str  # what its pictures show, behind the name of an arm


EXHIBITS = (
    Exhibit(
        "embedding.png",
        "The nodes as the network places them, in two dimensions: hyperbolic ones in the "
        "Poincaré disk, around their centroid, others by their two leading directions.",
        "Embeddings",
        "The embedding of the nodes at the end, projected to two dimensions.",
        "where it puts the nodes.",
    ),
    Exhibit(
        "mistakes.png",
        "Test images that the network takes for something else, those first about which it is most "
        "confident; with the class that each is of, and the probability of the one it is taken for.",
        "Mistakes",
        "Test images that are taken for something else, the most confident mistakes first.",
        "its most confident mistakes.",
    ),
)
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
        "score.png": f"{', '.join(s.title for s in scores if s != LOSS)} on validation data against "
        "step; a dotted line marks the best step, where one was chosen.",
        "spectra.png": "Singular values of weight matrices at the start (dashed) and at the end "
        "(solid).",
        **{exhibit.file: exhibit.caption for exhibit in EXHIBITS},
    }
