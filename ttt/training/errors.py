"""Errors that are raised before a training run begins."""


class TrainingError(ValueError):
    """The run cannot start or resume; the message names what to change."""
