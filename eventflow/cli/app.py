"""The commands: what they are called, what they take, and what their help says."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from eventflow.cli.address import LISTEN_ADDRESS, DatabaseOptions, Schema, read_address
from eventflow.cli.exits import ExitCode, UsageError
from eventflow.cli.jobs import JobCommands
from eventflow.cli.loading import FlowImportError
from eventflow.cli.terminal import Terminal
from eventflow.cli.worker import WorkerOptions
from eventflow.errors import EventFlowError
from eventflow.jobs import JobState
from eventflow.postgres import DEFAULT_SCHEMA
from eventflow.release import installed_release

# Shown as they stand: lines for a terminal of 80 columns.
DESCRIPTION = """\
Event sourcing, CQRS and durable scheduled jobs on Postgres.

The address of the database, postgresql://…, is read from EVENTFLOW_DSN or from
the file that --dsn-file names. It may hold a password, and every user of a
machine can read the arguments of every process: so no option takes it.
"""


def _exit_codes(*more: str) -> str:
    common = (
        "Exit codes:",
        "  0    done",
        "  1    an error, which one line names: no database, missing tables, …",
        "  2    wrong usage: options, no address",
    )
    return "\n".join((*common, *more, "  70   a bug; the traceback is on standard error"))


WORKER_EXIT_CODES = """\
Exit codes:
  0    stopped in good order
  1    an error it cannot go on from: definitions that do not fit together,
       missing tables, a login that is refused
  2    wrong usage: options, no address, no such flow
  5    ended by force: not done after grace and clean-up period
  70   a bug, in eventflow or the application; the traceback is in the log
  130, 143
       ended at once by a second SIGINT, SIGTERM
"""
DEMO_EXIT_CODES = """\
Exit codes:
  0    every command was executed, none of them early
  1    one was not, or the demo could not run
  130  stopped by Ctrl-C
"""

Json = Annotated[bool, Parameter(negative="", show_default=False, help="Answer in JSON, for scripts.")]
Id = Annotated[str, Parameter(name="ID", help="The id of the job.")]
Target = Annotated[
    str,
    Parameter(name="MODULE:FLOW", help="The EventFlow to run: a module, a colon, and its name in there."),
]
NO_DATABASE_OPTIONS = DatabaseOptions()
NO_WORKER_OPTIONS = WorkerOptions()
FLAG = Parameter(negative="", show_default=False)


class CommandLine:
    """
    The commands, each a method.

    Args:
        terminal: Gets what they say.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def app(self) -> App:
        """What parses the arguments and calls the methods."""
        app = App(
            name="eventflow",
            help=DESCRIPTION,
            help_epilogue=_exit_codes(),
            help_format="plaintext",
            version=installed_release,
        )
        app.command(self.demo, help_epilogue=DEMO_EXIT_CODES)
        app.command(
            self.dev, help_epilogue=_exit_codes("  130, 143", "       ended at once by a second SIGINT, SIGTERM")
        )
        app.command(self.migrate, help_epilogue=_exit_codes("  3    migrations are missing (with --check)"))
        app.command(self.worker, help_epilogue=WORKER_EXIT_CODES)
        jobs = App(
            name="jobs",
            help="Look at jobs and cancel them.",
            help_epilogue=_exit_codes("  4    there is no such job; or, for cancel, it has ended"),
        )
        jobs.command(self.list_jobs, name="list", help_epilogue=_exit_codes())
        jobs.command(self.show_job, name="show")
        jobs.command(self.cancel_job, name="cancel")
        app.command(jobs)
        subscribers = App(name="subscribers", help="Catch subscribers up with the events before they were there.")
        subscribers.command(self.catch_up, name="catch-up", help_epilogue=_exit_codes())
        app.command(subscribers)
        app.command(self.trace, help_epilogue=_exit_codes("  4    nothing is known of it"))
        return app

    def demo(
        self,
        *,
        jobs: Annotated[int, Parameter(metavar="N", validator=Number(gte=1), help="How many commands.")] = 600,
        seconds: Annotated[
            float, Parameter(metavar="SECONDS", validator=Number(gt=0), help="All are due within this time.")
        ] = 8.0,
    ) -> int:
        """
        See it work: schedule, kill the worker half-way, start it again, count.

        Runs on a Postgres of its own in a temporary directory, for which it needs the
        extra devdb or an installed Postgres.
        """
        from eventflow.demo import run_demo

        return run_demo(jobs=jobs, seconds=seconds)

    def dev(
        self,
        *,
        data: Annotated[Path, Parameter(metavar="DIR", help="Where its data is kept.")] = Path(".eventflow"),
        tcp: Annotated[
            bool, FLAG, Parameter(help="Listen on 127.0.0.1 too, with a password; otherwise on a Unix socket only.")
        ] = False,
        schema: Schema = DEFAULT_SCHEMA,
    ) -> int:
        """
        Run a Postgres for development, with eventflow's tables, until Ctrl-C.

        Prints the line to paste into other terminals: export EVENTFLOW_DSN=…
        Data stays until the directory is deleted. Needs the extra devdb, or an
        installed Postgres.
        """
        from eventflow.cli.database import serve_development

        return serve_development(data, tcp=tcp, schema=schema, terminal=self._terminal)

    def migrate(
        self,
        *,
        check: Annotated[bool, FLAG, Parameter(help="Change nothing; exit with 3 if migrations are missing.")] = False,
        sql: Annotated[
            bool, FLAG, Parameter(help="Change nothing; print the SQL of all migrations. Needs no database.")
        ] = False,
        database: DatabaseOptions = NO_DATABASE_OPTIONS,
    ) -> int:
        """
        Create or upgrade eventflow's tables.

        Safe to repeat, and to run in several places at once. Needs a user who may
        create schemas. One who may create roles too gets those for workers, producers
        and viewers.
        """
        from eventflow.cli.database import check_migrations, migrate_tables
        from eventflow.postgres import migration_script

        if check and sql:
            raise UsageError("--check and --sql exclude each other")
        if sql:
            self._terminal.result(migration_script(database.schema).rstrip())
            return ExitCode.DONE
        run = check_migrations if check else migrate_tables
        return run(database.address(self._terminal.mask), database.schema, self._terminal)

    def worker(
        self,
        target: Target,
        /,
        *,
        database: DatabaseOptions = NO_DATABASE_OPTIONS,
        options: WorkerOptions = NO_WORKER_OPTIONS,
    ) -> int:
        """
        Run the jobs of an application until stopped.

        For example: eventflow worker shop.app:flow --queues mail,default

        SIGTERM or Ctrl-C stops it in good order: it claims nothing more, gives running
        jobs the grace period, cancels the rest, and gives back what it did not finish,
        at no cost of an attempt. A second signal ends it at once; what it leaves behind
        is run again by other workers within seconds.

        A worker waits for a database that is away, also when it starts.
        """
        from eventflow.cli.logs import log_to_stderr
        from eventflow.cli.supervisor import supervise
        from eventflow.cli.worker import WorkerProcess

        mask = self._terminal.mask
        dsn = database.address(mask)
        listen_dsn = read_address(LISTEN_ADDRESS, options.listen_dsn_file, mask)
        process = WorkerProcess(target, dsn, listen_dsn=listen_dsn, schema=database.schema, options=options)
        log_to_stderr(options.log_level, mask)
        if options.processes > 1:
            return supervise(target, dsn, listen_dsn=listen_dsn, schema=database.schema, options=options)
        return process.run()

    def list_jobs(
        self,
        *,
        state: Annotated[JobState | None, Parameter(help="Only those in this state.")] = None,
        queue: Annotated[str | None, Parameter(metavar="NAME", help="Only those of this queue.")] = None,
        name: Annotated[str | None, Parameter(metavar="NAME", help="Only jobs or commands of this name.")] = None,
        limit: Annotated[int, Parameter(metavar="N", validator=Number(gte=1), help="At most so many.")] = 50,
        json: Json = False,
        database: DatabaseOptions = NO_DATABASE_OPTIONS,
    ) -> int:
        """List jobs, newest first, ended ones too as long as they are kept."""
        return self._jobs(database, json=json).list(state=state, queue=queue, name=name, limit=limit)

    def show_job(self, id: Id, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> int:
        """Show everything about a job: its payload, its attempts, its error."""
        return self._jobs(database, json=json).show(id)

    def cancel_job(self, id: Id, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> int:
        """Keep a job from running; a running one is stopped by its worker."""
        return self._jobs(database, json=json).cancel(id)

    def catch_up(
        self,
        target: Target,
        name: Annotated[str, Parameter(name="NAME", help="The subscriber: its name=, its function or its saga.")],
        /,
        *,
        app_dir: Annotated[Path, Parameter(metavar="DIR", help="Where MODULE is looked for first.")] = Path(),
        database: DatabaseOptions = NO_DATABASE_OPTIONS,
    ) -> int:
        """
        Give a subscriber that was added later the jobs of the events before.

        Deploy the subscriber first, so that new events reach it. May be stopped at any
        time: called again, it goes on from there. An event that has a job already gets
        no other, as long as the job's history is kept.
        """
        from eventflow.cli.subscribers import catch_up

        address = database.address(self._terminal.mask)
        return catch_up(target, name, address, database.schema, app_dir=app_dir, terminal=self._terminal)

    def trace(
        self,
        id: Annotated[str, Parameter(name="ID", help="The id of a job, an event, or a command (its source id).")],
        /,
        *,
        json: Json = False,
        database: DatabaseOptions = NO_DATABASE_OPTIONS,
    ) -> int:
        """
        Show what followed from what: the jobs and events of one story.

        Reads all jobs, so it takes seconds where there are millions.
        """
        from eventflow.cli.trace import trace

        address = database.address(self._terminal.mask)
        return trace(id, address, database.schema, terminal=self._terminal, json=json)

    def _jobs(self, database: DatabaseOptions, *, json: bool) -> JobCommands:
        return JobCommands(database.address(self._terminal.mask), database.schema, terminal=self._terminal, json=json)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    terminal = Terminal()
    for argument in arguments:
        if "://" in argument:  # does not belong there, and the error would repeat it
            terminal.mask.hide(argument.partition("=")[2] if argument.startswith("-") else argument)
    app = CommandLine(terminal).app()
    return exit_code(lambda: _call(app, arguments), terminal)


def exit_code(command: Callable[[], int | None], terminal: Terminal) -> int:
    """Call a command, and tell what it raises: its own errors in a line, others with their traceback."""
    try:
        return command() or ExitCode.DONE
    except CycloptsError as exc:
        terminal.error(exc)
        code = ExitCode.USAGE
    except EventFlowError as exc:
        if isinstance(exc, FlowImportError):
            terminal.crash(exc.error, exc.where)
        terminal.error(exc)
        code = ExitCode.USAGE if isinstance(exc, UsageError) else ExitCode.FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        terminal.abandon()
        code = ExitCode.FAILED
    except Exception as exc:  # noqa: BLE001 - the last resort: shown without passwords
        terminal.crash(exc)
        code = ExitCode.CRASHED
    return code


def _call(app: App, arguments: Sequence[str]) -> int | None:
    code: int | None = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    return code
