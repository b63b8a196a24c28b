"""Plain base of every part of a report, and the shapes all parts share."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Number = Annotated[float, Field(allow_inf_nan=False)]


Kind = Literal["channel", "neuron", "head"]


_GIVEN: set[str] = set()


class Plain(BaseModel):
    """Base of every part of a report: strict about keys, frozen, finite."""

    # Validators are built on first use: the torch-free commands start in a blink, and most use a few parts only.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    def model_post_init(self, _: Any) -> None:
        """Forget which fields were given."""
        # Which fields were given is asked nowhere, and one such set for each part is half of a large report's memory.
        object.__setattr__(self, "__pydantic_fields_set__", _GIVEN)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the fields of `update` replaced, unchecked."""
        copied = super().model_copy(update=update, deep=deep)
        copied.model_post_init(None)
        return copied


Part = TypeVar("Part", bound=Plain)


def interned(part: Part) -> Part:
    """`part`, or an equal one seen before: thousands of findings repeat the same small counts."""
    return cast(Part, _seen(part))


@lru_cache(maxsize=4096)
def _seen(part: Plain) -> Plain:
    return part


class Prediction(Plain):
    """What the model says of one example."""

    prediction: int = Field(ge=0)
    margin: Number = Field(description="logit of the flagged label minus the largest other logit; > 0 means fitted")
    confidence: Rate = Field(description="softmax probability of the flagged label")


class UnitRef(Plain):
    """One channel, neuron or attention head."""

    layer: str = Field(description="module path whose output (heads: input) carries the unit")
    index: int = Field(ge=0)
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


class Share(Plain):
    """How many of a number of examples something holds of."""

    hits: int = Field(ge=0)
    rate: Rate | None
    low: Rate | None = Field(description="95 % Wilson interval of `rate`")
    high: Rate | None
