"""Records: read any log of the benchmark, judge it, compare entries, submit one. Never imports torch."""


class RecordError(ValueError):
    """Bad input, for the user in one line: what was expected, what was found, what to do."""
