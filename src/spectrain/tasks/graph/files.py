from pathlib import Path

import numpy as np

from spectrain.tasks.graph.graphs import Graph, graph_from


def load_graph(path: Path) -> Graph:
    z = np.load(path)
    f = z["features"] if "features" in z else None
    if "feat_data" in z:
        n, F = z["feat_shape"]
        f = np.zeros((n, F), np.float32)
        rows = np.repeat(np.arange(n), np.diff(z["feat_indptr"]))
        f[rows, z["feat_indices"]] = z["feat_data"]
    sp = None
    if "train_idx" in z:
        sp = dict(train=z["train_idx"], validation=z["val_idx"], test=z["test_idx"])
    return graph_from(
        path.stem,
        z["edges"],
        features=f,
        labels=z["labels"],
        target=z["label_feature"] if "label_feature" in z else None,
        split=sp,
    )
