"""Settings of a worker."""

import msgspec

from eventflow.errors import WorkerError


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    How a worker behaves; durations in seconds.

    Attributes:
        concurrency: Jobs that run at once.
        queues: The queues it serves; ``None``: all.
        grace_period: How long running jobs may go on after a stop was asked for.
        heartbeat_interval: Between two beats of the lease.
        lease_duration: How long a beat may stand still before another worker takes the jobs.
        fence_after: Without a successful beat for so long, the worker cancels its handlers itself.
        tick_interval: Between two looks at the store, which find what no notification told.
        poll_interval: The same, while notifications are known not to arrive.
        claim_ahead: How long before its due time a job is taken into memory. A claim is made for that up to two
            seconds ahead; a longer time only widens claims that are made anyway.
        max_prefetch: Most jobs held beyond the free slots.
        queue_patience: How long a due job may wait for a slot before it is given back.
        linger: How long a completion may wait for others to share its commit.
        settle_batch: Most completions in one commit.
    """

    concurrency: int = 100
    queues: tuple[str, ...] | None = None
    grace_period: float = 25.0
    heartbeat_interval: float = 5.0
    lease_duration: float = 15.0
    fence_after: float = 10.0
    tick_interval: float = 1.0
    poll_interval: float = 0.1
    claim_ahead: float = 0.3
    max_prefetch: int = 1000
    queue_patience: float = 0.05
    linger: float = 0.002
    settle_batch: int = 500

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise WorkerError(f"concurrency must be at least 1, not {self.concurrency}")
        if not 0 < self.heartbeat_interval < self.fence_after < self.lease_duration:
            raise WorkerError(
                "0 < heartbeat_interval < fence_after < lease_duration must hold, not "
                f"{self.heartbeat_interval} < {self.fence_after} < {self.lease_duration}"
            )
        if self.grace_period < 0 or self.tick_interval <= 0 or self.poll_interval <= 0:
            raise WorkerError("grace_period, tick_interval and poll_interval cannot be negative")
