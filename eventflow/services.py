"""Services for handlers: a thin typed front of svcs, closed with what they belong to."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import anyio
import svcs

from eventflow.errors import ServiceNotFoundError

T = TypeVar("T")

CLOSE_SECONDS = 3.0
"""How long the services of a run that failed or was cancelled may take to close."""


class Services:
    """
    The services of a process, registered in the flow's ``lifespan``.

    A value is shared by all; a factory makes one per job or command, and its result is closed after it if it is
    a context manager.
    """

    def __init__(self) -> None:
        self._registry = svcs.Registry()

    def register_value(self, service: type[T], value: T) -> None:
        """Offer *value* wherever *service* is asked for. The lifespan closes it."""
        self._registry.register_value(service, value, enter=False)  # pyright: ignore[reportUnknownMemberType] - svcs leaves callables open

    # Any: svcs takes plain, async and generator factories alike and inspects them itself
    def register_factory(self, service: type, factory: Callable[..., Any]) -> None:
        """Offer what *factory* makes (sync, async, a generator or a context manager), once per scope."""
        self._registry.register_factory(service, factory)  # pyright: ignore[reportUnknownMemberType] - as above

    def scope(self) -> "ServiceScope":
        """The services of one job or command; use it as an async context manager."""
        return ServiceScope(self._registry)

    async def aclose(self) -> None:
        """Forget everything."""
        await self._registry.aclose()


class ServiceScope:
    """What one handler run sees of the services; its own instances are closed when it ends."""

    def __init__(self, registry: svcs.Registry) -> None:
        self._registry = registry
        self._opened: svcs.Container | None = None

    async def aget(self, service: type[T]) -> T:
        """
        The service of this type, awaiting its factory if that is needed.

        Raises:
            ServiceNotFoundError: nobody registered it.
        """
        try:
            return await self._container.aget(service)
        except svcs.exceptions.ServiceNotFoundError as exc:
            raise ServiceNotFoundError(service) from exc

    def get(self, service: type[T]) -> T:
        """The same without awaiting, for handlers that run in a thread."""
        try:
            return self._container.get(service)
        except svcs.exceptions.ServiceNotFoundError as exc:
            raise ServiceNotFoundError(service) from exc

    @property
    def _container(self) -> svcs.Container:
        if self._opened is None:  # most handlers ask for nothing
            self._opened = svcs.Container(self._registry)
        return self._opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._opened is None:
            return
        try:
            if error_type is None:
                await self._opened.aclose()
                return
        except BaseException:
            await self._close_what_is_left(self._opened)
            raise
        await self._close_what_is_left(self._opened)

    async def _close_what_is_left(self, opened: svcs.Container) -> None:
        """Also when cancelled: that must not keep services open."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await opened.aclose()
