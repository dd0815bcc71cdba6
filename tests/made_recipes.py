"""Recipes from TOML texts, for tests."""

from optimizers import STEPS
from records.run.effective import parse_recipe
from records.run.recipe import Recipe
from records.run.track import shipped_tracks

TRACKS = shipped_tracks()
HEAD = 'track = "fineweb"\ntrain_steps = 100\n'


def parse(text: str, *changes: str) -> Recipe:
    """A recipe of 100 steps on fineweb."""
    return changed(HEAD + text, *changes)


def changed(text: str, *changes: str) -> Recipe:
    """The recipe of a whole text, after changes."""
    return parse_recipe(text, "made", TRACKS, STEPS, changes)
