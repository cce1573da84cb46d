"""Typed calls of Ray actors. Ray-free: the handle is Ray's, and this module only names methods.

`handle.method.remote(...)` tells a type checker nothing: a misspelt method or a wrong argument shows when the call is
made. Here the method is named through its class, so mypy checks the name, the arguments and the result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

ActorT = TypeVar("ActorT", covariant=True)
Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


class Actor(Generic[ActorT]):
    """A Ray actor of class `ActorT`.

    Usage:
        worker: Actor[RolloutWorker] = Actor(ray.remote(RolloutWorker).remote("rollout-0", options))
        process_id = await worker.call(RolloutWorker.start)
        async for reference in scorer.stream(RewardActor.score, requests):
            verdicts = await reference
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        """Ray's own handle, for `ray.kill` and `ray.get_actor`'s like."""

    @overload
    def call(
        self,
        method: Callable[Concatenate[ActorT, Arguments], Coroutine[Any, Any, ResultT]],
        /,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Awaitable[ResultT]: ...

    @overload
    def call(
        self,
        method: Callable[Concatenate[ActorT, Arguments], ResultT],
        /,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Awaitable[ResultT]: ...

    def call(self, method: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call `method` of the actor at once. Returns Ray's reference of the result, which can be awaited.

        Awaiting raises what the method raised (`ray.exceptions.RayTaskError`), or `ray.exceptions.ActorDiedError` if
        the actor is gone.
        """
        return self._remote(method)(*arguments, **options)

    def stream(
        self,
        method: Callable[Concatenate[ActorT, Arguments], AsyncIterator[ResultT]],
        /,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> AsyncIterator[Awaitable[ResultT]]:
        """Call the generator `method` of the actor at once. Each item is a reference that can be awaited."""
        references: AsyncIterator[Awaitable[ResultT]] = self._remote(method)(*arguments, **options)
        return references

    def _remote(self, method: Callable[..., Any]) -> Callable[..., Any]:
        remote: Callable[..., Any] = getattr(self.handle, method.__name__).remote
        return remote
