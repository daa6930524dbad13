"""``novacron context``: which API commands talk to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from novacron import context_file
from novacron.cli import authorities, names, options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client.config import config_path, context_name
from novacron.context_file import Context, SettingsError
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage contexts: the servers that commands can connect to.")

ContextName = Annotated[
    str,
    typer.Argument(metavar="context", help="name of the context", autocompletion=names.contexts, show_default=False),
]

COLUMNS: Columns = {
    "CURRENT": lambda c: "*" if c["current"] else "",
    "NAME": lambda c: c["name"],
    "URL": lambda c: c["url"],
    "PROJECT": lambda c: c["project"],
}
DETAILS: Columns = {
    "NAME": lambda c: c["name"],
    "CURRENT": lambda c: c["current"],
    "URL": lambda c: c["url"],
    "PROJECT": lambda c: c["project"],
    "TOKEN": lambda c: c["has_token"],
    "AUTHORITY": lambda c: c["authority"],
    "FILE": lambda c: c["file"],
}


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, OSError) as error:
        raise output.fail(str(error), output.EXIT_USAGE) from None
    except UnicodeError:
        raise output.fail("the input is not UTF-8 text", output.EXIT_USAGE) from None


def _shown(name: str, context: Context, current: str) -> Object:
    """Return what is shown of a context: not its token."""
    return {"name": name, "url": context.url, "project": context.project, "current": name == current}


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List contexts; * marks the current one."""

    def read(limit: int | None) -> list[Object]:
        contexts, current = context_file.read(config_path()), context_name()
        return [_shown(name, contexts.get(name), current) for name in contexts.names()][:limit]

    with _errors():
        listing.show_read(read, COLUMNS)


@app.command()
def use(context: ContextName) -> None:
    """Use a context from now on."""
    with _errors():
        with context_file.changing(config_path()) as contexts:
            contexts.use(context)
        say(f"{context}: now the current context, at {contexts.get(context).url}")


@app.command()
def show(
    context: Annotated[str | None, typer.Argument(help="name of the context; default: the one that is used")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show a context, without its token."""
    with _errors():
        current = context_name()
        contexts, name = context_file.read(config_path()), context or current
        if not name:
            raise SettingsError(f"no context is selected; choose one of {contexts.path}: novacron context use NAME")
        chosen = contexts.get(name)
        shown = {
            **_shown(name, chosen, current), "has_token": bool(chosen.token), "authority": _authority(chosen.ca),
            "file": str(contexts.path),
        }  # fmt: skip
        output.fields(shown, DETAILS, output_)


def _authority(ca: str) -> str:
    """Return until when the certificate is valid that a context trusts."""
    if not ca:
        return "those of this machine"
    from novacron import pki  # loads slowly

    try:
        return f"its own, until {pki.utc(pki.expires_at_s(ca.encode()))}"
    except ValueError as error:
        return f"can't be read: {error}"


@app.command()
def add(
    context: ContextName,
    url: Annotated[str | None, typer.Option(help="URL of the API, such as https://control.example.net:7443")] = None,
    token: Annotated[str | None, typer.Option(help="API token; - reads it from standard input")] = None,
    ca: Annotated[Path | None, typer.Option(help="file with the installation's authority: ca.crt of a server")] = None,
    project: Annotated[str | None, typer.Option(help="project to work in; an empty text removes it")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="change the given settings of an existing context")
    ] = False,
) -> None:
    """Add a context, or change one."""
    with _errors():
        pem = None if ca is None else ca.read_text()
        secret = sys.stdin.readline().strip() if token == "-" else token  # noqa: S105 (means standard input)
        given = {"url": url, "token": secret, "ca": pem, "project": project}
        changes = {field: value for field, value in given.items() if value is not None}
        with context_file.changing(config_path()) as contexts:
            if replace:
                contexts.replace(context, contexts.get(context)._replace(**changes))
            elif not url or not secret:
                raise SettingsError("a context needs --url and --token")
            else:
                contexts.add(context, Context(**{"url": url, **changes}))
        say(f"{context}: {'changed' if replace else 'added'} in {contexts.path}")


@app.command()
def trust(
    context: Annotated[str | None, typer.Argument(help="name of the context; default: the one that is used")] = None,
) -> None:
    """Trust the current authorities of a context's server: during a rotation of its CA, the old and the new one."""
    with output.errors(), _errors():
        name = context or context_name()
        ca = authorities.trust(name)
        count = ca.count("BEGIN CERTIFICATE")
        say(f"{name}: trusts {f'{count} authorities' if count else 'whom this machine trusts'}")


@app.command()
def rename(context: ContextName, new: Annotated[str, typer.Argument(help="its new name", show_default=False)]) -> None:
    """Rename a context."""
    with _errors():
        with context_file.changing(config_path()) as contexts:
            contexts.rename(context, new)
        say(f"{context}: is called {new}")


@app.command()
def remove(context: ContextName) -> None:
    """Remove a context with its token. The token stays valid until it is revoked: novacron token revoke."""
    with _errors():
        with context_file.changing(config_path()) as contexts:
            contexts.remove(context)
        say(f"{context}: removed")
