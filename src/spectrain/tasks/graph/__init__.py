"""Learning on graphs: classes of nodes, and links."""
