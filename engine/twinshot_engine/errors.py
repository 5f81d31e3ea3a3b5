"""What the engine raises. Every message is one sentence with the offending value."""


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of a kind that cannot be served; each argument is a sentence."""

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class NotEnoughMemoryError(CheckpointError):
    """A checkpoint would not fit into the device's memory."""


class InvalidRequestError(ValueError):
    """A request asks for something this checkpoint cannot do; the caller can correct it."""


class EngineFilesError(CheckpointError):
    """Engines of TensorRT cannot be built, are damaged, or are not for this checkpoint, GPU or library."""
