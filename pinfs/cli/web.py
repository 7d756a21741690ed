"""`pinfs web`: a page that shows what a mount is doing."""

import os
import secrets
import socket
from functools import partial
from importlib.util import find_spec

import click

from pinfs.cli.mounts import the_mount
from pinfs.cli.verb import Verb, fail
from pinfs.observe.mounts import Mount

PORT = 7467  # PINS on a telephone's keys


@click.command(
    cls=Verb,
    short_help="Show a mount in a browser.",
    examples="""
# prints the address of the page; it works until Ctrl-C
pinfs web

# from another machine: through a tunnel, and then the printed address
ssh -L 7467:127.0.0.1:7467 server pinfs web /mnt/models
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="A host name that browsers may use for this machine."
)
def web(where: str | None, port: int, host: str, names: tuple[str, ...]) -> None:
    """Serve a read-only page about MOUNT: the pinned ranges of files, their holders, breaks as they happen, the policy.

    The page shows what the user of this command may see: root sees everything, other users do not see the holders of
    foreign pins. The printed address contains a key that is new each time; it is all that is needed to see the page.
    There is no encryption: beyond loopback, use a tunnel.
    """
    missing = [library for library in ("starlette", "uvicorn") if find_spec(library) is None]
    if missing:
        fail(f"the page needs {' and '.join(missing)}: pip install 'pinfs[web]'")
    from pinfs.web.app import LOOPBACK_NAMES, serve
    from pinfs.web.feed import Feed
    from pinfs.web.look import AskedLook

    mount = Mount(*the_mount(where))
    key = secrets.token_urlsafe(18)
    with _listening(host, port) as listening:
        name = _in_address(host)
        click.echo(f"http://{name}:{listening.getsockname()[1]}/{key}/")
        serve(Feed(partial(AskedLook, mount)), listening, key, [*LOOPBACK_NAMES, name, *names])


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _type, _protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        fail(f"{host}: {error.strerror}")
    except OSError as error:
        fail(f"{_in_address(host)}:{port}: {os.strerror(error.errno or 0)}")
