-- The demo's own tables, beside those of eventflow.
CREATE SCHEMA demo;

-- Commands whose scheduling was acknowledged: each of them must be executed.
CREATE TABLE demo.scheduled (
    source_id text PRIMARY KEY,
    job_id uuid NOT NULL
);

-- One row for every time a handler started.
CREATE TABLE demo.execution (
    source_id text NOT NULL,
    worker_pid integer NOT NULL,
    started_at timestamptz NOT NULL
);

-- The moment just before the worker was killed; one row.
CREATE TABLE demo.kill (
    killed_at timestamptz NOT NULL
);
