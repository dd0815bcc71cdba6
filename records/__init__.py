"""Records: read any log of the benchmark, judge it, compare entries, submit one. Never imports torch."""


class RecordError(ValueError):
    """Bad input, for the user in one line: what was expected, what was found, what to do."""


def printable(text: str) -> str:
    """The text with ? for what could steer a terminal; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
