"""What a knob of a recipe may be set to, and the sentence that says so when it is set to something else."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any

from trainer.errors import RecipeRefused

NUMBER, WHOLE, TEXT, SWITCH = "a number", "a whole number", "a text", "true or false"
TYPES = {NUMBER: (int, float), WHOLE: (int,), TEXT: (str,), SWITCH: (bool,)}


def knob(
    kind: str,
    default: Any,
    unit: str,
    reason: str,
    *,
    least: float | None = None,
    most: float | None = None,
    **more: Any,
) -> Any:
    """A field with its kind, unit, range and the reason for its default; docs/trainer.md has a row for each.

    `several` allows a list, `one_of` only these values, `also` a second kind, `words` these words beside it.
    """
    limits = {"kind": kind, "unit": unit, "reason": reason, "least": least, "most": most, **more}
    return field(default=default, metadata=limits)


class Checked:
    """Checks every field against its knob as soon as the value exists."""

    __slots__ = ()

    def where(self) -> str:
        """How a refusal names this value."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        for spec in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, spec.name)
            if spec.metadata and value is not None:
                _check(value, spec.metadata, f"{self.where()}: {spec.name}")


def closest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _check(value: Any, limits: Mapping[str, Any], where: str) -> None:
    words = limits.get("words", ())
    if isinstance(value, str) and value in words:
        return
    kinds = [limits["kind"], *limits.get("also", ())]
    types = tuple(each for kind in kinds for each in TYPES[kind])
    for item in value if limits.get("several") and isinstance(value, tuple) else (value,):
        # To Python true is the integer 1, but it is not a number of epochs.
        if not isinstance(item, types) or (isinstance(item, bool) and bool not in types):
            allowed = " or ".join([*kinds, *(f"{word!r}" for word in words)])
            raise RecipeRefused(f"{where} must be {allowed}, not {item!r}", "Correct the recipe")
        least, most = limits["least"], limits["most"]
        if (least is not None and not item >= least) or (most is not None and not item <= most):
            span = f"at least {least:g}" if most is None else f"between {least:g} and {most:g}"
            amount = f"{item!r} {limits['unit']}".rstrip()
            raise RecipeRefused(f"{where} is {amount}; it must be {span}", "Correct the recipe")
        if "one_of" in limits and item not in limits["one_of"]:
            hint = closest(str(item), limits["one_of"])
            raise RecipeRefused(f"{where} is {item!r}{hint}", f"It must be {' or '.join(limits['one_of'])}")
