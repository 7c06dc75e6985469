"""What a library says that it loaded, held against what the caller allows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..errors import ModelMismatchError
from ..models.fit import Strict
from ..words import some_of

__all__ = ["Outcome"]

_SHOWN = 5  # names in a warning
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`missing` and `unexpected` are names, `shapes` those of tensors that differ: {name: (model's, checkpoint's)}.

    `nothing`: no tensor of the checkpoint is one of the model.
    """

    model: str
    missing: Collection[str] = ()
    unexpected: Collection[str] = ()
    shapes: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    nothing: bool = False

    def enforce(self, strict: Strict, *, other_shapes: bool) -> None:
        """Raises ModelMismatchError for what `strict` does not allow. `other_shapes`: they may be made anew."""
        missing = sorted(self.missing) if strict or self.nothing else []
        unexpected = sorted(self.unexpected) if strict is True or self.nothing else []
        shapes = {} if other_shapes else dict(sorted(self.shapes.items()))
        if not (missing or unexpected or shapes):
            return
        hints = []
        if self.nothing:
            hints.append(f"Nothing of the checkpoint is for {self.model}: pass another class as cls=.")
        elif missing:
            hints.append("strict=False lets the library initialise what is missing, to be trained.")
        elif unexpected:
            hints.append('strict="missing" allows what the model does not use.')
        if shapes:
            hints.append('model_kwargs={"ignore_mismatched_sizes": True} makes tensors of another shape anew.')
        raise ModelMismatchError(missing=missing, unexpected=unexpected, shapes=shapes, hint=" ".join(hints))

    def warnings(self) -> list[str]:
        """What was allowed and should be known."""
        anew = [*sorted(self.missing), *sorted(self.shapes)]
        left = sorted(self.unexpected)
        told = [
            (anew, f"tensors of {self.model} are not in the checkpoint and were initialised anew"),
            (left, f"tensors of the checkpoint are not used by {self.model}"),
        ]
        return [f"{len(names):,} {what}: {some_of(names, _SHOWN)}" for names, what in told if names]
