"""Every state change of every job, logged by triggers, so that tests check histories and not guesses."""

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from eventflow import JobId, WorkerId
from eventflow.postgres import Connection

_INSTALL = """
CREATE SCHEMA watched;
CREATE TABLE watched.change (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL,
    left_state text,
    entered_state text,
    attempt integer NOT NULL,
    claim_no integer NOT NULL,
    crashes integer NOT NULL,
    worker_id uuid,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION watched.log_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    shown jsonb := coalesce(after, before);
    state text := coalesce(shown ->> 'state', TG_ARGV[0]);
BEGIN
    INSERT INTO watched.change (job_id, left_state, entered_state, attempt, claim_no, crashes, worker_id)
    VALUES (
        (shown ->> 'id')::uuid, CASE WHEN before IS NOT NULL THEN state END, CASE WHEN after IS NOT NULL THEN state END,
        (shown ->> 'attempt')::integer, (shown ->> 'claim_no')::integer,
        (shown ->> 'crashes')::integer, (shown ->> 'worker_id')::uuid);
    RETURN NULL;
END
$$;
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON eventflow.job
    FOR EACH ROW EXECUTE FUNCTION watched.log_change('waiting');
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON eventflow.running
    FOR EACH ROW EXECUTE FUNCTION watched.log_change('running');
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON eventflow.job_history
    FOR EACH ROW EXECUTE FUNCTION watched.log_change('history');
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON eventflow.dead_letter
    FOR EACH ROW EXECUTE FUNCTION watched.log_change('dead');

-- A row that left one table and entered another in one transaction is one transition.
CREATE VIEW watched.transition AS
SELECT
    min(number) AS number, job_id, min(left_state) AS left_state, min(entered_state) AS entered_state,
    max(attempt) FILTER (WHERE entered_state IS NOT NULL) AS attempt_after, min(attempt) AS attempt_least,
    max(claim_no) AS claim_no, max(crashes) AS crashes,
    (array_agg(worker_id) FILTER (WHERE worker_id IS NOT NULL))[1] AS worker_id,
    transaction, min(at) AS at
FROM watched.change GROUP BY job_id, transaction;
"""


class Transition(msgspec.Struct, frozen=True):
    """
    One change of one job's state, with its transaction.

    Attributes:
        left: The state before; ``None``: the job is new.
        entered: The state after; ``None``: no trace of it was kept.
        attempt: Attempts used after it (before it, if nothing is kept).
        crashes: Deaths of its workers counted after it.
        worker_id: Who held or takes the job; ``None``: nobody.
        at: The database's ``clock_timestamp()``.
    """

    job_id: JobId
    left: str | None
    entered: str | None
    attempt: int
    claim_no: int
    crashes: int
    worker_id: WorkerId | None
    transaction: int
    at: datetime

    @property
    def change(self) -> tuple[str | None, str | None]:
        """The two states."""
        return self.left, self.entered


class Transitions:
    """
    Reads what the triggers logged.

    Args:
        address: Of the watched database, as superuser.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def install(self) -> None:
        """Begin to watch; once per database."""
        connection = await asyncpg.connect(self._address)
        try:
            await connection.execute(_INSTALL)
        finally:
            await connection.close()

    async def of(self, job_id: JobId) -> list[Transition]:
        """The history of one job, oldest first."""
        return await self._read("WHERE job_id = $1", UUID(job_id.uuid))

    async def states(self, job_id: JobId) -> list[str | None]:
        """The states that one job entered, oldest first; ``None`` at the end: no trace was kept."""
        return [transition.entered for transition in await self.of(job_id)]

    async def all(self) -> list[Transition]:
        """The history of all jobs, oldest first."""
        return await self._read("")

    async def _read(self, condition: str, *args: object) -> list[Transition]:
        connection: Connection = await asyncpg.connect(self._address)
        try:
            rows = await connection.fetch(
                "SELECT job_id, left_state, entered_state, coalesce(attempt_after, attempt_least) AS attempt, claim_no,"
                f" crashes, worker_id, transaction::text::bigint AS transaction, at FROM watched.transition {condition}"
                " ORDER BY number",
                *args,
            )
        finally:
            await connection.close()
        return [
            Transition(
                JobId.of(str(row["job_id"])),
                row["left_state"],
                row["entered_state"],
                row["attempt"],
                row["claim_no"],
                row["crashes"],
                None if row["worker_id"] is None else WorkerId.of(str(row["worker_id"])),
                row["transaction"],
                row["at"],
            )
            for row in rows
        ]
