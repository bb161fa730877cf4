from spectrain.tasks.graph.graphs import Graph


def sir_tree(seed: int = 0, nodes: int = 1024) -> Graph:
    raise NotImplementedError
