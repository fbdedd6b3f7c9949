"""Settings as plain values: what lies in placeholders is dug out, and references between settings are followed."""

from __future__ import annotations

import re
from typing import Any

from seq2exp.official.unpickle import Placeholder, StoredTensor

_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")  # ${section.name} from the top, ${.name} beside, ${..name} above
_ANY_REFERENCE = re.compile(r"\$\{.*\}")
_STATE_OF = {"_content", "_val"}  # where OmegaConf's containers and leaves keep what they hold


def plain(value: Any) -> Any:
    """None, booleans, numbers, strings, lists and dicts. An object is the dict of its attributes or items; of one that
    has none, and of a tensor, only its name in angle brackets is left."""
    return _Digger().plain(value)


class _Digger:
    """Each object once, whatever refers to it; what lies in itself, or too deep, is None there."""

    DEEPEST = 100

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.depth = 0

    def plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if id(value) not in self.done and self.depth < self.DEEPEST:
            self.done[id(value)] = None
            self.depth += 1
            self.done[id(value)] = self._dig(value)
            self.depth -= 1
        return self.done.get(id(value))

    def _dig(self, value: Any) -> Any:
        if isinstance(value, StoredTensor):
            return "<tensor>"
        if isinstance(value, dict):
            return {self._name(key): self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.plain(item) for item in value]
        if isinstance(value, Placeholder):
            return self._object(value)
        return f"<{getattr(value, 'origin', type(value).__name__)}>"

    def _object(self, value: Placeholder) -> Any:
        state = value.state
        if isinstance(state, dict):
            for name in _STATE_OF & state.keys():
                return self.plain(state[name])
            return self.plain(state)
        if value.items:
            return self.plain(value.items)
        if value.origin.startswith("pathlib."):
            return "/".join(str(part) for part in value.arguments).replace("//", "/")
        return f"<{value.origin}>"

    def _name(self, key: Any) -> Any:
        return key if isinstance(key, str | int) else str(self.plain(key))


def resolved(settings: dict[Any, Any]) -> dict[Any, Any]:
    """A copy in which "${section.name}" is what it refers to. What refers to nothing, or would have to be computed, is
    left out."""
    return _Resolver(settings).of((), settings, 0)  # type: ignore[no-any-return]


class _Resolver:
    DEEPEST, MOST = 30, 100_000  # references to references and sections in sections; values in all

    def __init__(self, root: dict[Any, Any]) -> None:
        self.root, self.steps = root, 0

    def of(self, path: tuple[Any, ...], value: Any, depth: int) -> Any:
        """value, which stands at path; `_Resolver` itself where it refers to nothing."""
        self.steps += 1
        if depth > self.DEEPEST or self.steps > self.MOST or value == "???":  # OmegaConf's mark of what is not given
            return _Resolver
        if isinstance(value, dict):
            found = {key: self.of((*path, key), item, depth + 1) for key, item in value.items()}
            return {key: item for key, item in found.items() if item is not _Resolver}
        if isinstance(value, list):
            items = [self.of((*path, i), item, depth + 1) for i, item in enumerate(value)]
            return [None if item is _Resolver else item for item in items]
        if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
            dots, name = match.groups()
            start = path[: len(path) - len(dots)] if dots else ()
            return self._follow((*start, *name.split(".")), depth)
        return _Resolver if isinstance(value, str) and _ANY_REFERENCE.search(value) else value

    def _follow(self, path: tuple[Any, ...], depth: int) -> Any:
        value: Any = self.root
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return _Resolver
            value = value[part]
        return self.of(path, value, depth + 1)
