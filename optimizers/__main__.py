"""python -m optimizers: the map of methods and stages, as the README has it."""

from optimizers.explain import method_map

print(method_map())
