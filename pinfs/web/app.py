"""The page over HTTP: read-only, and 404 for requests without the key in their address."""

import secrets
import socket
from collections.abc import Sequence
from importlib.resources import files
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pinfs.web.feed import MAX_CLIENTS, Feed
from pinfs.web.picture import Query

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
MAX_CONNECTIONS: Final = 4 * MAX_CLIENTS

# The page consists of one document, one script and one style sheet of its own, and loads nothing from other origins.
# Its script cannot make markup out of text (trusted types).
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the address is a secret
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES: Final = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


class WithKey:
    """Answers 404 to requests with a wrong key.

    Every local user can reach a port on loopback, and the page of root shows more than they may see (SPEC 4).
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given: str = scope["path_params"]["key"]
        right = secrets.compare_digest(given.encode(), self._key)
        answer = self._app if right else PlainTextResponse("There is nothing here.\n", status_code=404)
        await answer(scope, receive, send)


def make_app(feed: Feed, key: str, names: Sequence[str]) -> Starlette:
    """`names`: the host names that requests may use, so that no other site can pose as this one (DNS rebinding)."""

    async def news(request: Request) -> Response:
        if feed.is_full:
            return PlainTextResponse("Too many viewers.\n", status_code=503)
        return StreamingResponse(feed.stream(Query.of(request.query_params)), media_type="text/event-stream")

    routes = [Route("/news", news), *(_file(path, *file) for path, file in _FILES.items())]
    app = Starlette(
        routes=[Mount("/{key}", routes=routes, middleware=[Middleware(WithKey, key=key)])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(names), www_redirect=False)],
    )
    app.router.redirect_slashes = False
    return app


def _file(path: str, name: str, media_type: str) -> Route:
    content = files("pinfs.web").joinpath("static", name).read_bytes()
    return Route(f"/{path}", lambda _request: Response(content, media_type=media_type))


class Server(uvicorn.Server):
    """Ends its streams at SIGINT and SIGTERM; uvicorn alone would wait for them."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._feed.close()


def serve(feed: Feed, listening: socket.socket, key: str, names: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        make_app(feed, key, names),
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=list(HEADERS.items()),
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=16 << 10,
        timeout_graceful_shutdown=2,
    )
    Server(config, feed).run([listening])
