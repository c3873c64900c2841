"""The planted bugs: what is changed where, and who must notice."""

import msgspec

SIMULATOR = "simulator"
CHAOS = "chaos"


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """
    One bug.

    Attributes:
        name: On the command line and in the report.
        path: The file.
        before: What stands there, exactly once.
        after: What the bug makes of it.
        caught_by: ``simulator``, ``chaos`` (real processes), or the tests to run.
        first: Seed from which on it is looked for.
        seeds: So many at most, before it is said to be missed.
    """

    name: str
    path: str
    before: str
    after: str
    caught_by: str = SIMULATOR
    first: int = 0
    seeds: int = 4000


WORKER = "eventflow/jobs/worker/"

IN_PYTHON = (
    Mutant(
        name="claim-without-answer-forgotten",
        path=WORKER + "claiming.py",
        before="            self._suspicious_until = self._clock.monotonic() + SUSPICION_SECONDS\n",
        after="",
    ),
    Mutant(
        name="completions-dropped-on-error",
        path=WORKER + "completion.py",
        before="            self._queue.extendleft(reversed(taken))\n",
        after="",
    ),
    Mutant(
        name="lease-fenced-too-late",
        path=WORKER + "lease.py",
        before="        left = self._lease.beaten_at + self._fence_after - self._clock.monotonic()\n",
        after="        left = self._lease.beaten_at + self._fence_after + 1 - self._clock.monotonic()\n",
        caught_by="tests/unit/test_lease.py",
    ),
    Mutant(
        name="closed-worker-goes-on",
        path=WORKER + "watch.py",
        before="        if not tick.open:\n",
        after="        if False:\n",
        caught_by="tests/unit/test_watch.py",
    ),
    Mutant(
        name="dead-workers-never-rescued",
        path=WORKER + "watch.py",
        before="        for peer in dead:\n",
        after="        for peer in []:\n",
    ),
    Mutant(
        name="living-workers-rescued",
        path=WORKER + "watch.py",
        before="        if at - sighting.since >= self._lease_duration:\n",
        after="        if at - sighting.since >= 0.5:\n",
    ),
    Mutant(
        name="missing-session-believed-at-once",
        path=WORKER + "watch.py",
        before="at - sighting.gone_since >= SECOND_LOOK_SECONDS",
        after="at - sighting.gone_since >= 0",
    ),
    Mutant(
        name="store-time-from-the-question",
        path=WORKER + "store_time.py",
        before="self._latest.append(_Sample(now_us, asked_at, self._clock.monotonic()))",
        after="self._latest.append(_Sample(now_us, asked_at, asked_at))",
    ),
    Mutant(
        name="drift-not-allowed-for",
        path=WORKER + "store_time.py",
        before="DRIFT = 500e-6\n",
        after="DRIFT = 0.0\n",
    ),
    Mutant(
        name="due-by-local-clock",
        path=WORKER + "timers.py",
        before="        now = self._store_time.bound_us()\n        due: list[ClaimedJob] = []\n        for",
        after="        now = int(self._clock.now().timestamp() * 1e6)\n        due: list[ClaimedJob] = []\n        for",
    ),
    Mutant(
        name="given-back-from-the-line-and-forgotten",
        path=WORKER + "slots.py",
        before="                claim, _ = self._line.popleft()\n                self._completions.add(",
        after="                claim, _ = self._line.popleft()\n                (lambda _: None)(",
    ),
    Mutant(
        name="service-ends-with-its-first-error",
        path="eventflow/supervision.py",
        before="                await self._clock.sleep(self._pause(failures))\n",
        after="                return\n",
    ),
    Mutant(
        name="listen-not-established-again",
        path="eventflow/postgres/listener.py",
        before="            if await self._lost.wait(PROOF_INTERVAL):\n",
        after="            if await self._lost.wait(None) and await self._lost.wait(None):\n",
    ),
    Mutant(
        name="deafness-not-noticed",
        path="eventflow/postgres/listener.py",
        before="        return self._heard == self._nonce\n",
        after="        return True\n",
    ),
    Mutant(
        name="notification-not-sent",
        path="eventflow/postgres/wakes.py",
        before="            self._notifier.mark()\n",
        after="            pass\n",
    ),
    Mutant(
        name="signal-forgotten-by-the-watch",
        path=WORKER + "watch.py",
        before="            self._completions.add(_ended(unstarted, signal))\n",
        after="",
    ),
    Mutant(
        name="completion-not-fenced",
        path="eventflow/jobs/in_memory.py",
        before="        return (row.worker_id, row.claim_no) == (worker_id, claim.claim_no)\n",
        after="        return True\n",
    ),
    Mutant(
        name="commit-not-fenced",
        path="eventflow/jobs/in_memory_commits.py",
        before="not self._jobs.holds(ends.worker_id, claim):\n            raise ClaimLostError",
        after="False:\n            raise ClaimLostError",
    ),
    Mutant(
        name="receipt-not-kept",
        path="eventflow/eventstore/in_memory.py",
        before="            self._receipts[changes.receipt.key] = changes.receipt.result\n",
        after="            pass\n",
    ),
    Mutant(
        name="stream-grown-not-noticed",
        path="eventflow/jobs/in_memory_commits.py",
        before="            raise StreamGrownError\n",
        after="            pass\n",
    ),
    Mutant(
        name="refund-counted-twice",
        path="eventflow/jobs/in_memory.py",
        before="        self._wait_again(row, due, attempts_back=1)\n",
        after="        self._wait_again(row, due, attempts_back=2)\n",
    ),
    Mutant(
        name="suspects-run-beside-others",
        path="eventflow/jobs/in_memory.py",
        before='kinds = self._now(), (None, "unknown") if parked else (None,)',
        after='kinds = self._now(), (None, "unknown", "suspect")',
    ),
    Mutant(
        name="expected-version-not-checked",
        path="eventflow/eventstore/in_memory.py",
        before="self.version_of(stream) != changes.expected_version:",
        after="False:",
    ),
    Mutant(
        name="tick-looks-at-no-jobs",
        path=WORKER + "claiming.py",
        before="        self._next_us = tick.next_us\n",
        after="",
    ),
    Mutant(
        name="slot-not-freed",
        path=WORKER + "slots.py",
        before="            self._seats.free += 1\n",
        after="            self._seats.free += 0 if self._committing else 1\n",
    ),
    Mutant(
        name="cancelled-settlement-lost",
        path=WORKER + "slots.py",
        before="                self._finish(job, _gave_way(job, started_us))\n",
        after="                self._finished()\n",
    ),
)

SQL = "eventflow/postgres/sql/"
MIGRATIONS = "eventflow/postgres/migrations/"

ON_POSTGRES = (
    Mutant(
        name="sql-completion-by-anybody",
        path=MIGRATIONS + "0002_hot_path.sql",
        before="AS h WHERE h.worker_id = complete_jobs.worker_id AND h.claim_no = g.claim_no",
        after="AS h WHERE h.claim_no = g.claim_no",
        caught_by="tests/contracts/test_job_store_settling.py",
    ),
    Mutant(
        name="sql-completion-of-any-claim",
        path=MIGRATIONS + "0002_hot_path.sql",
        before="AS h WHERE h.worker_id = complete_jobs.worker_id AND h.claim_no = g.claim_no",
        after="AS h WHERE h.worker_id = complete_jobs.worker_id",
        caught_by="tests/contracts/test_job_store_settling.py",
    ),
    Mutant(
        name="sql-command-not-fenced",
        path=MIGRATIONS + "0003_events.sql",
        before="""    IF NOT FOUND THEN
        RETURN QUERY SELECT 'lost', NULL::bigint;""",
        after="""    IF false THEN
        RETURN QUERY SELECT 'lost', NULL::bigint;""",
        caught_by="tests/integration/test_command_fence.py",
    ),
    Mutant(
        name="sql-skip-locked-removed",
        path=MIGRATIONS + "0005_quicker.sql",
        before="""                FOR UPDATE SKIP LOCKED
            ) AS u
""",
        after="""                FOR UPDATE
            ) AS u
""",
        caught_by="tests/integration/test_head_of_line.py",
    ),
    Mutant(
        name="sql-claim-while-being-closed",
        path=MIGRATIONS + "0005_quicker.sql",
        before="w.closed_at IS NULL FOR KEY SHARE;",
        after="w.closed_at IS NULL;",
        caught_by="tests/integration/test_fence.py tests/contracts/test_job_store_workers.py",
    ),
    Mutant(
        name="sql-ready-before-its-time",
        path=MIGRATIONS + "0005_quicker.sql",
        before="AND w.ready_at >= r.bound AND w.ready_at <= now\n                  AND (w.name",
        after="AND w.ready_at >= r.bound AND w.ready_at <= now + interval '1 hour'\n                  AND (w.name",
        caught_by="tests/contracts/test_job_store_claiming.py",
    ),
    Mutant(
        name="sql-rescue-in-spite-of-a-beat",
        path=SQL + "close_worker.sql",
        before="AND ($2::bigint IS NULL OR beat = $2)",
        after="AND ($2::bigint IS NULL OR beat >= $2)",
        caught_by="tests/contracts/test_job_store_workers.py",
    ),
    Mutant(
        name="sql-crash-costs-an-attempt",
        path=MIGRATIONS + "0002_hot_path.sql",
        before="    refunds => array_fill(1, ARRAY[cardinality(ids)]),",
        after="    refunds => array_fill(0, ARRAY[cardinality(ids)]),",
        caught_by="tests/contracts/test_job_store_workers.py",
    ),
    Mutant(
        name="sql-receipt-not-looked-at",
        path=MIGRATIONS + "0003_events.sql",
        before="""    IF NOT FOUND THEN
        RETURN QUERY SELECT 'duplicate', NULL::bigint;""",
        after="""    IF false THEN
        RETURN QUERY SELECT 'duplicate', NULL::bigint;""",
        caught_by="tests/contracts/test_event_store.py",
    ),
    Mutant(
        name="sql-writers-of-a-stream-at-once",
        path=MIGRATIONS + "0003_events.sql",
        before="commit_changes.expected_version IS DISTINCT FROM (",
        after="commit_changes.expected_version > (",
        caught_by="tests/contracts/test_event_store.py",
    ),
    Mutant(
        name="bound-raised-past-open-transactions",
        path="eventflow/postgres/bounds.py",
        before="self._looks[0].next_xid <= oldest_xid:",
        after="True:",
        caught_by="tests/unit/test_bounds.py tests/integration/test_lower_bound.py",
    ),
    Mutant(
        name="bound-never-set-back",
        path="eventflow/postgres/bounds.py",
        before="        self._looks.clear()\n        self.bounds_us = []\n",
        after="        self._looks.clear()\n",
        caught_by="tests/unit/test_bounds.py tests/integration/test_lower_bound.py",
    ),
    Mutant(
        name="unknown-commit-called-refused",
        path="eventflow/postgres/translation.py",
        before='    return not state or (state.startswith(("08", "57P")) and state not in _NEVER_RUN)',
        after="    return False",
        caught_by="tests/integration/test_lost_answers.py",
    ),
    Mutant(
        name="commands-fail-by-an-outage",
        path="eventflow/application/app.py",
        before="            transactions=backend.transactions,\n            patience=patience,\n",
        after="            transactions=backend.transactions,\n",
        caught_by="tests/unit/test_patience.py",
    ),
    Mutant(
        name="full-queue-of-notifications-never-emptied",
        path="eventflow/postgres/sql/prove_listening.sql",
        before="pg_notification_queue_usage(), ",
        after="",
        caught_by="tests/integration/test_full_notification_queue.py",
    ),
)

BY_REAL_PROCESSES = (
    Mutant(
        name="begun-early-not-known",
        path=WORKER + "slots.py",
        before="            self._running[claim.id] = job  # not only when its task begins",
        after="            #",
        caught_by=CHAOS,
        first=12,
        seeds=16,
    ),
    Mutant(
        name="lost-insert-called-done",
        path="eventflow/postgres/job_store.py",
        before="            if not await self._exist(jobs):\n                raise\n",
        after="",
        caught_by=CHAOS,
        seeds=16,
    ),
)

MUTANTS = (*IN_PYTHON, *ON_POSTGRES, *BY_REAL_PROCESSES)
