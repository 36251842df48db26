"""What settings are made of: their class, the ranges of their values, and changes to some of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]

SideName = Literal["old", "new"]
TargetTokens = Literal["all", "answer"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings: plain values that a stage's record can hold."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, from which `msgspec.convert` makes the same settings again."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


_S = TypeVar("_S", bound=Settings)


def merged(settings: _S, *changes: Mapping[str, Any]) -> _S:
    """The settings with some of their keys changed, later changes over earlier ones.

    Raises:
        msgspec.ValidationError: A key is unknown or a value out of range.
    """
    plain = settings.as_dict()
    for change in changes:
        plain |= change
    return msgspec.convert(plain, type(settings), strict=False)
