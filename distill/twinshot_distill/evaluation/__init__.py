"""How good a checkpoint's pictures are: the built-in benchmark, and pictures for the official ones."""
