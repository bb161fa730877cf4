"""What is trained: each task brings its data, its models and its measure of quality."""
