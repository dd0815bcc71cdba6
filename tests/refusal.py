"""What a command says when it refuses."""

import contextlib
import io
import sys
from collections.abc import Callable

import pytest

from records.run.signals import REFUSED


def refusal_of(call: Callable[[], object], status: int = REFUSED) -> str:
    """The last line that a call leaves on stderr, which ends with that exit code."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stopped:
        call()
    sys.stderr.write(said.getvalue())
    assert stopped.value.code == status
    return said.getvalue().splitlines()[-1]
