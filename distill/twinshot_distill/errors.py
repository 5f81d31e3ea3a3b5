"""What can go wrong in a way its user can mend."""


class TrainingError(Exception):
    """Training or evaluation cannot go on; the message says why and what would help."""
