"""
An application with a real domain: orders that have to be paid in time, stock that is reserved for them, shipping.

Follow one order: ``orders.py`` → ``fulfilment.py`` → ``stock.py`` → ``fulfilment.py`` → ``shipping.py``.
"""
