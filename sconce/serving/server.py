"""Running the API on a socket."""

import socket
from collections.abc import Callable

import uvicorn

from sconce.errors import SconceError
from sconce.generation.model import TextModel
from sconce.serving.app import Api, ServerOptions

GRACE_SECONDS = 5  # how long running requests may go on after Ctrl-C
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SconceError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise SconceError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from None


def serve(model: TextModel, options: ServerOptions, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `started` when the first request may come."""
    connections = 4 * (options.rows + options.queue)
    config = uvicorn.Config(
        Api(model, options).app(),
        log_level="error",
        access_log=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        lifespan="on",
    )
    server = _Server(config, started)
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say_started()
