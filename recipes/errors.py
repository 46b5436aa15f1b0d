"""What can go wrong in a recipe, one class each; on the command line, one line and exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from netaugfx.errors import NetAugFXError


class RecipeError(NetAugFXError):
    """The base of every error that recipes raise on purpose."""


class DataError(RecipeError):
    """Data cannot be found, or an image of it cannot be read."""


class ModelError(RecipeError):
    """A model name, or an argument for its constructor, leads to no model."""


class RunError(RecipeError):
    """An output directory, or the checkpoint in it, does not fit what is asked for."""


class LossError(RecipeError):
    """The loss is no longer a finite number."""


class DistillError(RecipeError):
    """Student, teacher, objective or features do not fit each other."""


class SearchError(RecipeError):
    """A search cannot start, cannot go on, or found nothing."""


def near(name: str, known: Sequence[str]) -> str:
    """A sentence that suggests known names like `name`, or tells some of them."""
    matches = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    return (
        f"Near: {', '.join(matches)}."
        if matches
        else f"Known, for instance: {', '.join(sorted(known)[:5])}."
    )
