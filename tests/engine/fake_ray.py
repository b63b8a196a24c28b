"""What the engine uses of Ray, in one process and in order: actors are objects, and die when they are told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ray import exceptions


class Fake:
    """Stands where the module `ray` does.

    Args:
        deaths: numbers of the calls of an actor, counted over all actors, at which it dies.
        starts: whether actors come up at all.
    """

    exceptions = exceptions

    def __init__(self, deaths: Sequence[int] = (), *, starts: bool = True) -> None:
        self.deaths, self.starts, self.calls = set(deaths), starts, 0
        self.options: dict[str, Any] = {}
        self.dead: set[Any] = set()
        self.running = False

    def init(self, **options: Any) -> None:
        self.options, self.running = options, True

    def shutdown(self) -> None:
        self.running = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0, "memory": 1.0}

    def remote(self, actor: type) -> Any:
        return _Options(self, actor)

    def kill(self, actor: Any) -> None:
        self.dead.add(actor)

    def put(self, value: Any) -> Any:
        return _Ref(lambda: value)

    def get(self, ref: Any) -> Any:
        return ref.value()

    def wait(self, refs: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        """The last that was asked for is done first: what comes out of order must not matter."""
        return ([refs[-1]], []) if self.starts else ([], list(refs))


class _Ref:
    def __init__(self, value: Callable[[], Any]) -> None:
        self.value = value


class _Options:
    def __init__(self, ray: Fake, actor: type) -> None:
        self.ray, self.actor = ray, actor

    def options(self, **_: Any) -> _Options:
        return self

    def remote(self, *args: Any) -> _Handle:
        return _Handle(self.ray, self.actor(*args))


class _Handle:
    numbers = itertools.count()

    def __init__(self, ray: Fake, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.number = next(self.numbers)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return type("Method", (), {"remote": staticmethod(lambda *args: self._call(method, args))})

    def _call(self, method: Any, args: Sequence[Any]) -> _Ref:
        self._ray.calls += 1
        number = self._ray.calls

        def value() -> Any:
            if number in self._ray.deaths:
                self._ray.dead.add(self)
            if self in self._ray.dead:
                raise exceptions.RayActorError()
            return method(*(arg.value() if isinstance(arg, _Ref) else arg for arg in args))

        return _Ref(value)
