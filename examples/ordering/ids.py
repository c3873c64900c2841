"""The identities of the domain."""

from eventflow import Identity


class OrderId(Identity):
    """Of an order, and of its fulfilment."""


class ItemId(Identity):
    """Of an item in stock."""
