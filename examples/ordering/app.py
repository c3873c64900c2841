"""The application: ``eventflow worker examples.ordering.app:flow``."""

from eventflow import EventFlow
from examples.ordering import fulfilment, orders, shipping, stock

flow = EventFlow("ordering")
for part in (orders, stock, fulfilment, shipping):
    flow.include(part.flow)
