"""Subscribers and sagas: what follows from events, as durable jobs."""

from eventflow.subscribers.catch_up import CatchUp, CatchUpStore, Progress
from eventflow.subscribers.dispatcher import EventDispatcher, Place, Subscription
from eventflow.subscribers.event_job import EventJob, EventJobRunner, event_job_type
from eventflow.subscribers.inline import InlineSubscribers
from eventflow.subscribers.saga import Saga, SagaCompleted, SagaSubscriber, handles, handlings_of, starts_with
from eventflow.subscribers.subscriber import FunctionSubscriber, Subscriber, SubscriberContext

__all__ = [
    "CatchUp",
    "CatchUpStore",
    "EventDispatcher",
    "EventJob",
    "EventJobRunner",
    "FunctionSubscriber",
    "InlineSubscribers",
    "Place",
    "Progress",
    "Saga",
    "SagaCompleted",
    "SagaSubscriber",
    "Subscriber",
    "SubscriberContext",
    "Subscription",
    "event_job_type",
    "handles",
    "handlings_of",
    "starts_with",
]
