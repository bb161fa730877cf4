"""Translation: an encoder–decoder Transformer, Euclidean or hyperbolic, on parallel text."""
