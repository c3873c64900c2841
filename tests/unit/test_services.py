"""Services for handlers."""

from collections.abc import AsyncGenerator

import pytest

from eventflow import ServiceNotFoundError, Services


class Mailer:
    """A service."""


async def test_value_is_shared() -> None:
    """A registered value is the same in every scope."""
    services, mailer = Services(), Mailer()
    services.register_value(Mailer, mailer)

    async with services.scope() as first, services.scope() as second:
        assert await first.aget(Mailer) is mailer
        assert second.get(Mailer) is mailer


async def test_factory_makes_one_for_each_scope() -> None:
    """A factory's service is made when first asked for, once in a scope, and closed with it."""
    made: list[Mailer] = []
    closed: list[Mailer] = []

    async def factory() -> AsyncGenerator[Mailer]:
        made.append(Mailer())
        yield made[-1]
        closed.append(made[-1])

    services = Services()
    services.register_factory(Mailer, factory)

    async with services.scope():
        pass
    assert made == []
    async with services.scope() as scope:
        first = await scope.aget(Mailer)
        assert await scope.aget(Mailer) is first
        assert closed == []
    async with services.scope() as scope:
        assert await scope.aget(Mailer) is not first

    assert closed == made
    assert len(made) == 2


async def test_unknown_service_is_named() -> None:
    """Asking for what nobody registered is an error that names it, awaited or not."""
    async with Services().scope() as scope:
        with pytest.raises(ServiceNotFoundError, match="no service Mailer") as caught:
            await scope.aget(Mailer)
        with pytest.raises(LookupError, match="lifespan"):
            scope.get(Mailer)

    assert caught.value.service is Mailer
