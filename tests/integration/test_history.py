"""The history's partitions: made for the coming days, dropped when they have expired."""

from datetime import UTC, datetime, timedelta

from eventflow.postgres import Connection
from tests.support.journal import query

PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'eventflow.job_history'::regclass"
TODAY = datetime.now(UTC).date()


async def add_partition(admin: Connection, name: str, days_ago: int) -> None:
    """Make one for a day that has passed."""
    day = TODAY - timedelta(days=days_ago)
    await admin.execute(
        f"CREATE TABLE eventflow.{name} PARTITION OF eventflow.job_history"
        f" FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}');"
        f"ALTER TABLE eventflow.{name} OWNER TO eventflow_owner"
    )


async def test_expired_days_are_dropped_with_fresh_statistics_too(dsn: str, admin: Connection) -> None:
    """The server's own relations, whose names it then reads first, are no dates."""
    expired = f"job_history_{TODAY - timedelta(days=2):%Y%m%d}"
    await add_partition(admin, expired, days_ago=2)
    await admin.execute("VACUUM ANALYZE")
    await query(dsn, "SELECT eventflow.maintain_history()")
    left = {name.removeprefix("eventflow.") for (name,) in await admin.fetch(PARTITIONS)}

    assert expired not in left
    assert {f"job_history_{TODAY + timedelta(days=day):%Y%m%d}" for day in (1, 2, 3, 4)} <= left


async def test_partition_that_somebody_else_has_added_stays(dsn: str, admin: Connection) -> None:
    """Only those that maintenance has made, which their names tell, are its to drop."""
    await add_partition(admin, "before", days_ago=3)
    await query(dsn, "SELECT eventflow.maintain_history()")

    assert "eventflow.before" in [name for (name,) in await admin.fetch(PARTITIONS)]


async def test_jobs_that_end_by_a_clock_that_is_a_day_behind_are_kept(dsn: str, admin: Connection) -> None:
    """It may be set back over midnight, or belong to the server of a failover: yesterday's jobs expire today."""
    await query(dsn, "SELECT eventflow.maintain_history()")

    assert await admin.fetchval("SELECT eventflow.history_partition((clock_timestamp() AT TIME ZONE 'UTC')::date)")
