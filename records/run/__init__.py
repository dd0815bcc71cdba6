"""What the trainer reads and writes: recipe, track, log, and the run as one script."""

from records import RecordError


class RunError(RecordError):
    """The run cannot start or go on. The message is for the user: expected, found, what to do."""


class RunEnded(RunError):
    """A run that had begun cannot go on: exit code 1, where a refusal has 2."""
