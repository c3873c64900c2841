"""Postgres in a container: the server of a whole run, or one that a test pauses and restarts."""

import gc
import os
import secrets
import socket
import warnings
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager

import docker
from docker.errors import DockerException, ImageNotFound
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config

IMAGE = os.environ.get("EVENTFLOW_TEST_IMAGE", "postgres:18")


def why_no_container() -> str | None:
    """Why no container of :data:`IMAGE` can be started here; ``None``: it can, and the image is there."""
    try:
        with closing(docker.from_env()) as engine:
            engine.ping()
            _have(engine, IMAGE)
    except DockerException as error:
        reason = f"no container of {IMAGE}: {error}"
    else:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # here, not in any test: the client has left open the socket that it could not connect
    return reason


@contextmanager
def postgres_container(settings: Mapping[str, str], *, port: int | None = None) -> Generator[PostgresContainer]:
    """
    A server that is gone afterwards, with TCP and a password.

    Args:
        settings: Of the server, by name.
        port: Where it is published, also after a restart; by default where there is room, anew at each start.
    """
    _reap_if_possible()
    password = secrets.token_hex(16)  # it is published to the whole network
    container = PostgresContainer(IMAGE, username="postgres", password=password, dbname="postgres", driver=None)
    container.with_bind_ports(5432, port)
    container.with_command(["postgres", *(f"-c{name}={value}" for name, value in settings.items())])
    with container:
        yield container


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _reap_if_possible() -> None:
    # Removes containers whose test run was killed; but it is another image, which not every machine can pull.
    try:
        with closing(docker.from_env()) as engine:
            _have(engine, testcontainers_config.ryuk_image)
    except DockerException:
        testcontainers_config.ryuk_disabled = True


def _have(engine: docker.DockerClient, image: str) -> None:
    try:
        engine.images.get(image)
    except ImageNotFound:
        engine.images.pull(image)
