"""What is stored with a job besides its message: where it comes from."""

import msgspec

from eventflow.commands import Causation
from eventflow.eventstore import Deadline
from eventflow.jobs.records import ClaimedJob


class Headers(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The headers of a job.

    Attributes:
        correlation_id: Shared by everything that follows from one first command or job.
        causation_id: What it was scheduled by.
        traceparent: W3C trace context of who scheduled it.
        deadline: The deadline that it is.
    """

    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    deadline: Deadline | None = None

    @classmethod
    def of(cls, cause: Causation, deadline: Deadline | None) -> "Headers":
        """The headers of a job with this cause."""
        return cls(cause.correlation_id, cause.causation_id, cause.traceparent, deadline)

    @classmethod
    def read(cls, claim: ClaimedJob) -> "Headers":
        """The headers of a claimed job, which anybody may have written; raises what decoding raises."""
        return _decoder.decode(claim.headers) if claim.headers else cls()

    def cause_of(self, claim: ClaimedJob) -> Causation:
        """What the job causes comes from it."""
        return Causation(self.correlation_id or claim.id, claim.id, self.traceparent)


_decoder = msgspec.json.Decoder(Headers)
