"""What the engine raises. Every message is one sentence with the offending value."""


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of a kind that cannot be served."""


class InvalidRequestError(ValueError):
    """A request asks for something this checkpoint cannot do; the caller can correct it."""
