"""The one connection that listens, and the proof that it hears."""

import logging
import secrets

from eventflow.clock import Clock, Wakeup
from eventflow.errors import DatabaseUnavailableError
from eventflow.ids import WorkerId
from eventflow.jobs.worker import Heartbeat, Wake
from eventflow.postgres.connection import Connect, Connection, Lane
from eventflow.postgres.statements import statement
from eventflow.postgres.translation import DRIVER_ERRORS, translate

log = logging.getLogger("eventflow.postgres")

PROOF_INTERVAL = 5.0
"""Seconds between two proofs."""
PROOF_SECONDS = 2.0
"""How long a proof may be under way."""


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
    """

    def __init__(
        self, connect: Connect, prover: Lane, worker_id: WorkerId, schema: str, *, wake: Wake, clock: Clock
    ) -> None:
        self._connect = connect
        self._prover = prover
        self._schema = schema
        self._proof_channel = f"{schema}_{worker_id.uuid[-12:]}"
        self._wake = wake
        self._clock = clock
        self._lost = Wakeup(clock)
        self._proof = Wakeup(clock)
        self._nonce = ""
        self.session: tuple[int, str] | None = None
        """Key of the advisory lock that the proven session holds, and the server it is on."""

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
        except DRIVER_ERRORS as exc:
            raise translate(exc, self._schema) from exc
        finally:
            self.session, heartbeat.listening = None, False
            connection.terminate()

    async def _listen(self, connection: Connection, heartbeat: Heartbeat) -> None:
        await self._lost.wait(0)  # lower what the last connection raised
        connection.add_termination_listener(lambda _: self._lost.set())
        await connection.add_listener(self._schema, self._on_notification)
        await connection.add_listener(self._proof_channel, self._on_proof)
        key = secrets.randbits(63)
        taken: bool = await connection.fetchval(statement("take_session_lock", self._schema), key)
        server: str = await connection.fetchval(statement("select_server", self._schema))
        proven = False
        while True:
            if await self._prove():
                if not proven:
                    proven, heartbeat.listening = True, True
                    self.session = (key, server) if taken else None
                    await heartbeat.beat_now()  # shows the session to others
                    self._wake("")  # something may have been missed before
            elif proven:
                raise DatabaseUnavailableError("notifications do not arrive any more")
            elif heartbeat.listening:
                heartbeat.listening = False
                log.warning("listen.deaf", extra={"channel": self._schema})
            if await self._lost.wait(PROOF_INTERVAL):
                # Others see the lock missing by now. A beat without it, before their second look, says why.
                self.session = None
                await heartbeat.beat_now()
                raise DatabaseUnavailableError("the listening connection was lost")

    async def _prove(self) -> bool:
        await self._proof.wait(0)
        self._nonce = secrets.token_hex(8)
        await self._prover.fetch(statement("prove_listening", self._schema), self._proof_channel, self._nonce)
        return await self._proof.wait(PROOF_SECONDS)

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._wake(str(payload))

    def _on_proof(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if payload == self._nonce:
            self._proof.set()
