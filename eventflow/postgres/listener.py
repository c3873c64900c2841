"""The one connection that listens, and the proof that it hears."""

import logging
import secrets
from contextlib import suppress

import anyio

from eventflow.clock import Clock, Wakeup
from eventflow.errors import DatabaseError, DatabaseUnavailableError
from eventflow.ids import WorkerId
from eventflow.jobs.worker import Heartbeat, Wake
from eventflow.postgres.connection import Connection, Connector, Lane
from eventflow.postgres.pooler import is_direct
from eventflow.postgres.statements import statement
from eventflow.postgres.translation import DRIVER_ERRORS, translate

log = logging.getLogger("eventflow.postgres")

PROOF_INTERVAL = 5.0
"""Seconds between two proofs."""
PROOF_SECONDS = 2.0
"""How long a proof may be under way."""
LOOKS = 10
"""Looks for the session at a pooler: while others use it too, chance may give us the same one several times."""

_WHICH_SESSION = "SELECT pg_backend_pid() AS session"


class Listener:
    """
    Listens for notifications, and holds the session by which others see that this process is there.

    LISTEN through a pooler in transaction mode is accepted and silently deaf, and a half-open connection looks
    alive; so a nonce is sent on another connection and must arrive on this one, at the start and ever again.
    Only a proven session is shown to other workers: through a pooler its lock would say nothing.

    Args:
        connect: Opens the listening connection.
        prover: Sends the nonces.
        wake: Gets the payloads of notifications.

    Attributes:
        session: Key of the advisory lock that the proven session holds, and the server it is on.
        tried: Set once it is known whether the first session hears, and others can see that.
    """

    def __init__(
        self, connect: Connector, prover: Lane, worker_id: WorkerId, schema: str, *, wake: Wake, clock: Clock
    ) -> None:
        self._connect = connect
        self._prover = prover
        self._schema = schema
        self._proof_channel = f"{schema}_{worker_id.uuid[-12:]}"
        self._wake = wake
        self._clock = clock
        self._lost = Wakeup(clock)
        self._proof = Wakeup(clock)
        self._nonce = self._heard = ""
        self.session: tuple[int, str] | None = None
        self.tried = anyio.Event()

    async def listen_step(self, heartbeat: Heartbeat) -> None:
        """
        Listen until the connection is lost.

        Raises:
            DatabaseUnavailableError: it could not be opened, or was lost, or went deaf.
        """
        try:
            connection = await self._connect()
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc
        try:
            await self._listen(connection, heartbeat)
        except DatabaseError:
            await self._withdraw(heartbeat)
            raise
        except DRIVER_ERRORS as exc:
            await self._withdraw(heartbeat)
            raise translate(exc, self._schema) from exc
        finally:
            self.session, heartbeat.listening = None, False
            connection.terminate()

    async def _withdraw(self, heartbeat: Heartbeat) -> None:
        """Beat without the session: others who miss its lock, now or soon, must not take the process for dead."""
        if self.session is None:
            return
        self.session = None
        for _ in range(2):  # what ended this session may have ended the one for beats too: that shows in the first
            with suppress(DatabaseError):  # who cannot be reached by us does not look for us
                await heartbeat.beat_now()
                return

    async def _listen(self, connection: Connection, heartbeat: Heartbeat) -> None:
        await self._lost.wait(0)  # lower what the last connection raised
        connection.add_termination_listener(self._on_lost)
        if await self._is_shared(connection):
            self._report_deaf(heartbeat)
            self.tried.set()
            await self._lost.wait()
            raise DatabaseUnavailableError("the connection to the pooler was lost")
        await connection.add_listener(self._schema, self._on_notification)
        await connection.add_listener(self._proof_channel, self._on_proof)
        proven = False
        while True:
            if await self._prove():
                if not proven:
                    proven, heartbeat.listening = True, True
                    self.session = await self._hold(connection)
                    await heartbeat.beat_now()  # shows the session to others
                    self._wake("")  # something may have been missed before
            elif proven:
                raise DatabaseUnavailableError("notifications do not arrive any more")
            else:
                self._report_deaf(heartbeat)
            self.tried.set()
            if not proven:  # deaf, as through a pooler; or half-open all along
                await connection.fetchval(_WHICH_SESSION, timeout=PROOF_SECONDS)
            if await self._lost.wait(PROOF_INTERVAL):
                raise DatabaseUnavailableError("the listening connection was lost")

    async def _is_shared(self, connection: Connection) -> bool:
        """
        Whether a pooler lends the session to others between our statements: LISTEN would stay behind in it.

        Not all sharing shows; what does not is left to the proof.
        """
        if await is_direct(connection):
            return False
        ours, theirs = set[int](), set[int]()
        for _ in range(LOOKS):
            ours.add(await connection.fetchval(_WHICH_SESSION, timeout=PROOF_SECONDS))
            theirs.update(row["session"] for row in await self._prover.fetch(_WHICH_SESSION))
            if len(ours) > 1 or ours & theirs:
                return True
        return False

    async def _hold(self, connection: Connection) -> tuple[int, str] | None:
        """Lock the proven session; in one that is a pooler's, the lock would stay behind."""
        key = secrets.randbits(63)
        taken: bool = await connection.fetchval(statement("take_session_lock", self._schema), key)
        server: str = await connection.fetchval(statement("select_server", self._schema))
        return (key, server) if taken else None

    def _report_deaf(self, heartbeat: Heartbeat) -> None:
        if heartbeat.listening:
            heartbeat.listening = False
            log.warning("listen.deaf", extra={"channel": self._schema})

    async def _prove(self) -> bool:
        await self._proof.wait(0)
        self._nonce = secrets.token_hex(8)
        await self._prover.fetch(statement("prove_listening", self._schema), self._proof_channel, self._nonce)
        await self._proof.wait(PROOF_SECONDS)
        return self._heard == self._nonce

    def _on_lost(self, connection: object) -> None:
        self._lost.set()
        self._proof.set()  # there will be none

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._wake(str(payload))

    def _on_proof(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._heard = str(payload)
        if self._heard == self._nonce:
            self._proof.set()
