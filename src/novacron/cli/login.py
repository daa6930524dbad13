"""``novacron login`` and ``logout``: get a token for a context with a password, and give it back."""

from __future__ import annotations

import getpass
import re
import socket
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from novacron import context_file
from novacron.cli import names, output
from novacron.client import Client
from novacron.client.config import Config, config_path, context_name
from novacron.client.session import Session
from novacron.context_file import Context, SettingsError
from novacron.terminal import say

APP_CODE = re.compile(r"[0-9]{6}")
DAY_S = 86_400
DAYS_MAX = 3650


def login(
    url: Annotated[
        str | None, typer.Argument(help="URL of the API; by default that of the context", show_default=False)
    ] = None,
    user: Annotated[str | None, typer.Option(help="name of the user; by default prompted for")] = None,
    name: Annotated[
        str | None,
        typer.Option("--as", help="context to store it in; by default the current one, or the URL's host",
                     autocompletion=names.contexts),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="file with the installation's authority: ca.crt of a server")] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX, help="days until the login expires")] = 30,
    with_token: Annotated[bool, typer.Option("--with-token", help="prompt for a token instead of a password")] = False,
) -> None:  # fmt: skip
    """Log in: store a token for this API in a context, and make that the current one.

    Asks for the password, and for a code of your authenticator app or a recovery code if you have a second factor.
    Without a terminal it reads them from standard input, one per line. They are never passed as arguments.
    """
    with output.errors():
        try:
            _login(url, user, name, ca, days, with_token)
        except SettingsError as error:
            raise output.fail(str(error), output.EXIT_USAGE) from None


def web() -> None:
    """Print a link that opens the web UI, logged in as you. It works once, within five minutes, and asks for your
    second factor if you have one.

    Anyone who has the link can log in as you: do not share it.
    """
    with output.errors():
        client = Client()
        link = client.create_login_link()
        say(client.config.url + link["path"])


def _login(url: str | None, user: str | None, name: str | None, ca: Path | None, days: int, with_token: bool) -> None:
    contexts = context_file.read(config_path())
    name = name or (context_name() if url is None else _name_for(url, contexts))
    known = contexts.get(name) if name in contexts.names() else Context("", "")
    address = url or known.url
    if not name or not address:
        raise output.fail("give the URL of the API: novacron login https://server.example.org:7443", output.EXIT_USAGE)
    authority = known.ca if ca is None else ca.read_text()
    if with_token:
        token = _secret("token")
        with Client(Config(address, token, authority)) as client:
            who = str(client.me()["user"])
    else:
        who = user or _line("user")
        with Session(address, authority) as session:
            step = session.log_in(who, _secret("password"))
            if step is not None:
                session.complete(step["step"], _proof(step["factors"]))
            token = session.create_token(f"login at {socket.gethostname()}"[:63], days * DAY_S)
    with context_file.changing(config_path()) as stored:
        if name in stored.names():
            stored.replace(name, stored.get(name)._replace(url=address, token=token, ca=authority))
        else:
            stored.add(name, Context(address, token, authority))
        stored.use(name)
    say(f"{name}: logged in to {address} as {who}")


def _name_for(url: str, contexts: context_file.Contexts) -> str:
    """Return the context of an API, or a new name: its host's."""
    for name in contexts.names():
        if contexts.get(name).url.rstrip("/") == url.rstrip("/"):
            return name
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", host).lstrip("_.-")[:63]


def _line(what: str) -> str:
    """Return what a person types, or a line of standard input. Raises typer.Exit if there is none."""
    if sys.stdin.isatty():
        typed: str = typer.prompt(what, err=True)
        return typed.strip()
    return _next_line(what)


def _secret(what: str) -> str:
    """Return what a person types, unseen, or a line of standard input. Raises typer.Exit if there is none."""
    return getpass.getpass(f"{what}: ") if sys.stdin.isatty() else _next_line(what)


def _next_line(what: str) -> str:
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise output.fail(f"there is no {what} on standard input", output.EXIT_USAGE)
    return line


def _proof(factors: list[str]) -> dict[str, str]:
    """Return what completes a login: a code of an app, or a recovery code."""
    typed = _secret("code of your app, or recovery code" if "totp" in factors else "recovery code").strip()
    return {"code": typed} if APP_CODE.fullmatch(typed) and "totp" in factors else {"recovery_code": typed}


def logout() -> None:
    """Log out: revoke the token of the current context, and remove it from the context."""
    with output.errors():
        try:
            name = context_name()
            if not name:
                raise output.fail("no context is selected: see novacron context list", output.EXIT_USAGE)
            context = context_file.read(config_path()).get(name)
            if not context.token:
                say(f"{name}: was not logged in")
                return
            with Client(Config(context.url, context.token, context.ca)) as client:
                client.request("POST", "/api/v1/logout")
            with context_file.changing(config_path()) as stored:
                stored.replace(name, stored.get(name)._replace(token=""))
            say(f"{name}: logged out of {context.url}")
        except SettingsError as error:
            raise output.fail(str(error), output.EXIT_USAGE) from None
