"""python -m optimizers: the map of methods and stages, as the README has it."""

import os
import sys

from optimizers.explain import method_map

try:
    print(method_map(), flush=True)
except BrokenPipeError:  # nobody reads on: `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
