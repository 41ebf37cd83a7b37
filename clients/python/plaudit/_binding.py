"""Each endpoint is written once and bound to whichever client it is reached through.

`endpoint` turns a method that describes a request into one that makes it: through `Plaudit` it returns the answer,
through `AsyncPlaudit` an awaitable of it. `procedure` does so for conversations of several requests, `pages` for
listings, item by item. The overloads tell type checkers the same.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from plaudit._core import Call, Core, Flow, Reply
from plaudit.wire.base import Page
from plaudit.wire.overview import Overview

if TYPE_CHECKING:
    from plaudit.async_client import AsyncChatStream, AsyncDriver
    from plaudit.client import ChatStream, SyncDriver

P = ParamSpec("P")
T = TypeVar("T")
D_co = TypeVar("D_co", covariant=True)


class Driver(Protocol):
    """What the bindings need of a driver; the two differ in whether the result must be awaited."""

    @property
    def core(self) -> Core:
        """What its requests have in common."""
        ...

    def run(self, flow: Flow[Any]) -> Any:
        """Carry out a conversation."""
        ...

    def stream(self, flow: Flow[Reply]) -> Any:
        """Open a stream."""
        ...

    def follow(self, flow: Flow[Reply]) -> Any:
        """Open a stream of overviews."""
        ...

    def pages(self, fetch: Callable[[str | None], Flow[Page[Any]]], after: str | None) -> Any:
        """Iterate over a listing."""
        ...


class Resource(Generic[D_co]):
    """A group of endpoints on one client."""

    def __init__(self, driver: D_co) -> None:
        self._driver = driver


class endpoint(Generic[P, T]):  # noqa: N801  # a decorator
    """A method that describes one request."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self.build = build
        update_wrapper(self, build)  # type: ignore[arg-type]  # its __call__ is the bound method's

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: "Resource[SyncDriver]", owner: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(self, resource: "Resource[AsyncDriver]", owner: type[Any]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind to a client."""
        if resource is None:
            return self

        @wraps(self.build)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            driver: Driver = resource._driver
            return driver.run(driver.core.exchange(self.build(resource, *args, **kwargs)))

        return bound


class procedure(Generic[P, T]):  # noqa: N801  # a decorator
    """A method that holds a conversation of several requests and pauses."""

    def __init__(self, converse: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self.converse = converse
        update_wrapper(self, converse)  # type: ignore[arg-type]

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: "Resource[SyncDriver]", owner: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(self, resource: "Resource[AsyncDriver]", owner: type[Any]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind to a client."""
        if resource is None:
            return self

        @wraps(self.converse)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resource._driver.run(self.converse(resource, *args, **kwargs))

        return bound


class pages(Generic[P, T]):  # noqa: N801  # used as a decorator is
    """All items of a listing, page by page as they are needed. Takes the arguments of the listing."""

    def __init__(self, listing: endpoint[P, Page[T]]) -> None:
        self.listing = listing
        self.__doc__ = f"As the listing, but every item, fetched page by page. {listing.__doc__ or ''}"

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: "Resource[SyncDriver]", owner: type[Any]) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, resource: "Resource[AsyncDriver]", owner: type[Any]) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind to a client."""
        if resource is None:
            return self

        def bound(*args: Any, after: str | None = None, **kwargs: Any) -> Any:
            driver: Driver = resource._driver
            build: Callable[..., Call[Page[T]]] = self.listing.build

            def fetch(cursor: str | None) -> Flow[Page[T]]:
                return driver.core.exchange(build(resource, *args, after=cursor, **kwargs))

            return driver.pages(fetch, after)

        return bound


class streaming(Generic[P]):  # noqa: N801  # a decorator
    """A method that describes a request whose answer is a stream."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[Reply]]) -> None:
        self.build = build
        update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: "Resource[SyncDriver]", owner: type[Any]) -> "Callable[P, ChatStream]": ...
    @overload
    def __get__(
        self, resource: "Resource[AsyncDriver]", owner: type[Any]
    ) -> "Callable[P, Coroutine[Any, Any, AsyncChatStream]]": ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind to a client."""
        if resource is None:
            return self

        @wraps(self.build)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            driver: Driver = resource._driver
            return driver.stream(driver.core.exchange(self.build(resource, *args, **kwargs)))

        return bound


class following(Generic[P]):  # noqa: N801  # a decorator
    """A method that describes a request whose answer is an overview that changes."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[Reply]]) -> None:
        self.build = build
        update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: "Resource[SyncDriver]", owner: type[Any]) -> Callable[P, Iterator[Overview]]: ...
    @overload
    def __get__(self, resource: "Resource[AsyncDriver]", owner: type[Any]) -> Callable[P, AsyncIterator[Overview]]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind to a client."""
        if resource is None:
            return self

        @wraps(self.build)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            driver: Driver = resource._driver
            return driver.follow(driver.core.exchange(self.build(resource, *args, **kwargs)))

        return bound
