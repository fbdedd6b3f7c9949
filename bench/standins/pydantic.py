"""Stands in for pydantic on a machine that has torch only: fields and their defaults, nothing is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

ConfigDict = dict
ValidationError = ValueError


class Field:
    """The default of a field; its limits are forgotten."""

    def __init__(self, default: Any = None, **limits: Any) -> None:
        self.default = default


def model_validator(**how: Any) -> Callable[[Any], Any]:
    return lambda method: method


class _Model(type):
    """Takes the defaults out of the class, where they would hide methods of the same name."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _Model:
        fields = {k: v for base in bases for k, v in getattr(base, "fields", {}).items()}
        for field in namespace.get("__annotations__", {}):
            if field in namespace:
                default = namespace.pop(field)
                fields[field] = default.default if isinstance(default, Field) else default
        return super().__new__(cls, name, bases, namespace | {"fields": fields})


class BaseModel(metaclass=_Model):
    fields: Mapping[str, Any]

    def __init__(self, **given: Any) -> None:
        if unknown := given.keys() - self.fields.keys():
            raise TypeError(f"unknown fields: {', '.join(sorted(unknown))}")
        vars(self).update(self.fields | given)

    def model_dump(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def model_validate(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**fields)
