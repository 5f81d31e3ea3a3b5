"""TwinFlow training: the miniature's world, its losses and stages, its frozen judge."""
