"""What a run does when: the learning rate's factor, values between knots, the validations."""

import math

from records.run.recipe import COOLDOWN, Recipe


def value_at(knots: list[list], step: float) -> float:
    """At a step between knots [step, value, shape], from the knot before on; see Recipe for the shapes."""
    before = knots[0]
    for knot in knots[1:]:
        if step < knot[0]:
            x = max((step - before[0]) / (knot[0] - before[0]), 0.0)
            shape = knot[2] if len(knot) > 2 else 1
            if isinstance(shape, list):
                x = 1 / (1 + math.exp(min((shape[1] - x) / shape[2], 700.0)))
            else:
                x = 0.5 - 0.5 * math.cos(math.pi * x) if shape == "cosine" else x**shape
            return before[1] + (knot[1] - before[1]) * x
        before = knot
    return before[1]


def learning_rate_factor(step: int, recipe: Recipe, kind: str) -> float:
    """Of the initial learning rate at update `step`, for "matrix" or "aux" (AdamW's): 1, after a warm-up; in
    the cooldown down to the floor, linear to the `cooldown_power`. See Recipe for `phases` and `delay`.
    """
    schedule = recipe.schedule
    said = {key: schedule[key if kind == "matrix" else f"aux_{key}"] for key in COOLDOWN}
    now = step - (value_at(schedule["delay"], step) if schedule["delay"] else 0)
    if said["phases"]:
        return value_at(said["phases"], now)
    plan = said["steps"] or recipe.train_steps
    steps = plan
    if isinstance(plan, list):  # before its first point, that point's
        steps = [plan[0][1], *(total for start, total in plan if start <= now)][-1]
    frac = said["cooldown_steps"] / steps if said["cooldown_steps"] else said["cooldown_frac"]
    left = max(1 - now / steps, 0)
    factor = (left / frac) ** said["cooldown_power"] if left <= frac else 1.0
    factor = said["floor"] + (1 - said["floor"]) * factor if said["floor"] else factor
    return factor * min(1.0, max(now, 0) / schedule["warmup_steps"]) if schedule["warmup_steps"] else factor


def validates(step: int, recipe: Recipe) -> bool:
    """Whether the track validates before update `step` (or after the last)."""
    track, late = recipe.track, step >= 0.9 * recipe.train_steps
    every = track.late_val_every if late else track.val_every
    return step % every == 0 or step % track.val_every == 0 or step == recipe.train_steps
