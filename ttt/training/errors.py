"""Errors that end a training run before it begins."""


class TrainingError(ValueError):
    """The run cannot start or resume as asked; the message names what to change."""
