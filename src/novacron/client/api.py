"""The API's client: one method a route, waiters for what takes time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import urllib3

from novacron.client.errors import ApiError, Unreachable

if TYPE_CHECKING:
    from novacron.client.console import Console

TIMEOUT_S = 30.0
LONG_POLL_S = 20
RETRIES = 3
PAGE_SIZE = 500
COPY_LOOK_S = 1.0
PAGES_MAX = 10_000
PIECE_BYTES = 1 << 20

Object = dict[str, Any]


T = TypeVar("T")


class Config(NamedTuple):
    """Where the API is, who calls, whom to trust (PEM), and in which project; "": the caller's own, lists of all."""

    url: str
    token: str
    ca: str
    project: str = ""


def config_path() -> Path:
    """Return the path of the settings: ``NOVACRON_CONFIG``, or the user's configuration directory."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("NOVACRON_CONFIG") or base / "novacron" / "config.json")


def load_config() -> Config:
    """Return the settings; ``NOVACRON_URL``, ``NOVACRON_TOKEN`` and ``NOVACRON_PROJECT`` come first.

    Raises Unreachable without any.
    """
    path = config_path()
    stored: Object = {}
    if path.exists():
        stored = json.loads(path.read_text())
    url = os.environ.get("NOVACRON_URL") or stored.get("url")
    token = os.environ.get("NOVACRON_TOKEN") or stored.get("token")
    if not url or not token:
        raise Unreachable(
            f"no API settings: neither {path} nor NOVACRON_URL and NOVACRON_TOKEN are there\n"
            "start a platform with: novacron up"
        )
    project = os.environ.get("NOVACRON_PROJECT") or stored.get("project", "")
    return Config(url, token, stored.get("ca", ""), project)


class Client:
    """A connection to one API. Not for use by several threads at once."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or load_config()
        context = ssl.create_default_context(cadata=self.config.ca or None)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
        self._pool = urllib3.PoolManager(ssl_context=context, maxsize=2)

    def request(
        self, method: str, path: str, body: Object | None = None, raw: bytes | None = None, **headers: str
    ) -> Any:
        """Send a request, with an object or ``raw`` bytes, and return the decoded answer. Raises ApiError, Unreachable.

        A POST carries an Idempotency-Key, so trying it again after a lost connection is harmless.
        """
        sent = {"Authorization": f"Bearer {self.config.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if self.config.project and not re.search(r"[?&]project=", path):
            path += ("&" if "?" in path else "?") + _query({"project": self.config.project})
        if body is not None or raw is not None:
            sent.setdefault("Content-Type", "application/json" if raw is None else "application/octet-stream")
        if method == "POST":
            sent.setdefault("Idempotency-Key", str(uuid.uuid4()))
        for attempt in range(1, RETRIES + 1):
            try:
                answer = self._pool.request(
                    method,
                    self.config.url + path,
                    body=raw if body is None else json.dumps(body).encode(),
                    headers=sent,
                    timeout=urllib3.Timeout(connect=5, read=TIMEOUT_S + LONG_POLL_S),
                    retries=False,
                )
            except urllib3.exceptions.HTTPError as error:
                if attempt == RETRIES:
                    raise Unreachable(f"no answer from {self.config.url}: {error}") from error
                time.sleep(0.2 * attempt)
                continue
            if answer.status == 503 and attempt < RETRIES:
                time.sleep(0.5 * attempt)
                continue
            return self._decode(answer)
        raise AssertionError("unreachable")

    def metrics(self, node: str | None = None) -> str:
        """Return what the server, or a node's agent, counts and measures, in Prometheus' text format.

        Raises ApiError, Unreachable.
        """
        return self._fetch("/metrics" if node is None else f"/api/v1/nodes/{_path(node)}/metrics").decode()

    def ready(self) -> tuple[bool, str]:
        """Say whether the server can serve, and if not, why. Raises Unreachable."""
        try:
            answer = self._pool.request("GET", f"{self.config.url}/readyz", timeout=10, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"no answer from {self.config.url}: {error}") from error
        return answer.status == 200, answer.data.decode(errors="replace").strip()

    def log_level(self) -> str:
        """Return what the server logs."""
        return str(self.request("GET", "/api/v1/log-level")["level"])

    def set_log_level(self, level: str, node: str | None = None) -> None:
        """Let the server, or a node's agent, log more, or less, until it ends."""
        where = "" if node is None else f"/nodes/{_path(node)}"
        self.request("PUT", f"/api/v1{where}/log-level", {"level": level})

    def _fetch(self, path: str) -> bytes:
        headers, again = {"Authorization": f"Bearer {self.config.token}"}, urllib3.Retry(RETRIES, backoff_factor=0.2)
        try:
            answer = self._pool.request(
                "GET", self.config.url + path, headers=headers, timeout=TIMEOUT_S + LONG_POLL_S, retries=again
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"no answer from {self.config.url}: {error}") from error
        if answer.status != 200:
            self._decode(answer)
        return bytes(answer.data)

    def _decode(self, answer: urllib3.BaseHTTPResponse) -> Any:
        try:
            document = json.loads(answer.data) if answer.data else None
        except ValueError:
            raise Unreachable(f"{self.config.url} answered {answer.status} with something else than JSON") from None
        if answer.status >= 400:
            raise ApiError(document if isinstance(document, dict) else {"status": answer.status})
        return document

    def list(self, kind: str, limit: int | None = None, **filters: str) -> Iterator[Object]:
        """Yield the objects of a kind, for example ``vms``, ``nodes``, ``migrations``, ``links`` or ``events``."""
        cursor = None
        for _ in range(PAGES_MAX):
            query = dict(filters)
            if kind not in ("images", "tokens", "sites", "api-log"):
                query["limit"] = str(min(limit or PAGE_SIZE, PAGE_SIZE))
            if cursor:
                query["cursor"] = cursor
            page = self.request("GET", f"/api/v1/{kind}?{_query(query)}")
            for item in page["items"]:
                yield item
                if limit is not None:
                    limit -= 1
                    if limit == 0:
                        return
            cursor = page.get("next")
            if cursor is None:
                return

    def get(self, kind: str, ref: str) -> Object:
        """Return one object by id or name."""
        found: Object = self.request("GET", f"/api/v1/{kind}/{_path(ref)}")
        return found

    def one(self, type_: type[T], ref: str) -> T:
        """Return one object by id or name as a value of its type: ``client.one(Vm, "web").status.state``, with ``Vm``
        from ``novacron.model.vm``. Raises TypeError for what the API has none of."""
        from novacron.client import typed

        return typed.read(type_, self.get(typed.kind_of(type_), ref))

    def every(self, type_: type[T], limit: int | None = None, **filters: str) -> Iterator[T]:
        """Yield the objects of a type as values of it: ``client.every(Vm, state="running")``."""
        from novacron.client import typed

        for found in self.list(typed.kind_of(type_), limit, **filters):
            yield typed.read(type_, found)

    def create_vm(self, **fields: Any) -> Object:
        """Create a VM; fields as in ``POST /api/v1/vms``, those that are None left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        created: Object = self.request("POST", "/api/v1/vms", body)
        return created

    def create_vms(self, items: Sequence[Object]) -> Object:
        """Create up to 100 VMs at once; ``items`` of the answer says what became of each, in order."""
        done: Object = self.request("POST", "/api/v1/vms/batch", {"items": items})
        return done

    def configure_vms(self, items: Sequence[Object]) -> Object:
        """Change up to 100 VMs at once: each item has ``vm`` and ``changes``."""
        done: Object = self.request("PUT", "/api/v1/vms/batch", {"items": items})
        return done

    def delete_vms(self, refs: Sequence[str]) -> Object:
        """Delete up to 100 VMs at once."""
        done: Object = self.request("DELETE", "/api/v1/vms/batch", {"vms": list(refs)})
        return done

    def clone_vm(self, ref: str, name: str, **fields: Any) -> Object:
        """Create a VM like another; fields as in ``POST /api/v1/vms/{ref}/actions/clone``."""
        body = {key: value for key, value in fields.items() if value is not None}
        return self.act("vms", ref, "clone", {"name": name, **body})

    def open_console(self, ref: str, kind: str = "serial") -> Console:
        """Open a VM's console: its serial line, or its ``display`` (VNC). Raises ApiError, Unreachable."""
        from novacron.client.console import Console

        ticket = self.act("vms", ref, "open-console", {"kind": kind})
        return Console(self.config.url.replace("https://", "wss://") + ticket["path"], self.config.ca)

    def foresee_placement(self, **fields: Any) -> Sequence[Object]:
        """Say where ``create_vm`` with these fields would place a VM: a verdict on each node, the best first."""
        found: Sequence[Object] = self.request("POST", "/api/v1/placements", fields)["items"]
        return found

    def rebalancing(self) -> Object:
        """Return how the fleet is rebalanced, and what was decided last."""
        found: Object = self.request("GET", "/api/v1/rebalancing")
        return found

    def configure_rebalancing(self, **settings: Any) -> Object:
        """Say how the fleet is rebalanced: ``mode``, ``imbalance_min``, ``rounds``, ``cool_down_s`` and others."""
        found: Object = self.request("PUT", "/api/v1/rebalancing", settings)
        return found

    def placement(self, ref: str) -> Sequence[Object]:
        """Say where a VM could be moved now: a verdict on each node, the best first."""
        found: Sequence[Object] = self.request("GET", f"/api/v1/vms/{_path(ref)}/placement")["items"]
        return found

    def configure_vm(self, ref: str, **changes: Any) -> Object:
        """Change a VM's ``name``, ``vcpus``, ``memory_mib``, ``restart`` or ``protected``."""
        changed: Object = self.request("PATCH", f"/api/v1/vms/{_path(ref)}", changes)
        return changed

    def act(self, kind: str, ref: str, action: str, body: Object | None = None) -> Object:
        """Do an action, for example ``act("vms", "web", "stop", {"timeout_s": 5})``."""
        done: Object = self.request("POST", f"/api/v1/{kind}/{_path(ref)}/actions/{action}", body)
        return done

    def configure_node(self, name: str, **changes: Any) -> Object:
        """Change a node's ``site`` or ``migration_rate_bytes_per_s`` (None takes the limit away)."""
        changed: Object = self.request("PATCH", f"/api/v1/nodes/{_path(name)}", changes)
        return changed

    def limit_link(self, one: str, other: str, rate_bytes_per_s: int, schedule: Sequence[Object] = ()) -> Object:
        """Limit what migrations between two sites may use together; fields as in ``PUT /api/v1/links``."""
        body = {"rate_bytes_per_s": rate_bytes_per_s, "schedule": list(schedule)}
        stored: Object = self.request("PUT", f"/api/v1/links/{_path(one)}/{_path(other)}", body)
        return stored

    def probe_link(self, source: str, target: str, seconds: float = 3.0) -> Object:
        """Return what is measured on the path from one node to another, while data flows for ``seconds``."""
        body = {"source": source, "target": target, "seconds": seconds}
        found: Object = self.request("POST", "/api/v1/links/actions/probe", body)
        return found

    def copy_image(self, name: str, target: str, source: str | None = None) -> Object:
        """Begin to copy an image to a node. ``wait_for_copy`` waits for its end."""
        begun: Object = self.act("images", name, "copy", {"target": target, "source": source})
        return begun

    def import_image(self, name: str, file: Path | None = None, **fields: Any) -> Object:
        """Begin to import an image: from a ``file`` of the caller's, which is uploaded and hashed here, or from
        ``url=`` or ``path=``; other fields as in ``POST /api/v1/imports``. ``wait`` waits for its end."""
        if file is None:
            return self.begin_import(name, **fields)
        with file.open("rb") as opened:
            if fields.get("sha256") is None:
                fields["sha256"] = hashlib.file_digest(opened, "sha256").hexdigest()
        return self.upload(self.begin_import(name, **fields, size_bytes=file.stat().st_size), file)

    def begin_import(self, name: str, **fields: Any) -> Object:
        """Begin to import an image; fields as in ``POST /api/v1/imports``, those that are None left out."""
        body = {"name": name, **{key: value for key, value in fields.items() if value is not None}}
        begun: Object = self.request("POST", "/api/v1/imports", body)
        return begun

    def upload(
        self, begun: Object, file: Path, sent: Callable[[int], None] = lambda held: None, offset: int = 0
    ) -> Object:
        """Send what an import lacks of its file, from where it stands; ``sent`` is told how much is there.

        What is uploaded begins at ``offset`` in ``file``.
        """
        held, lost = begun["held_bytes"], 0
        with file.open("rb") as opened:
            while held < begun["spec"]["size_bytes"]:
                opened.seek(offset + held)
                piece = opened.read(min(PIECE_BYTES, begun["spec"]["size_bytes"] - held))
                if not piece:
                    raise Unreachable(f"{file} became shorter while it was sent")
                now = self._piece(begun["id"], held, piece)
                lost = lost + 1 if now <= held else 0
                if lost > RETRIES:
                    raise Unreachable(f"the node takes no more of {file} than {now} bytes")
                held = now
                sent(held)
        return self.get("imports", begun["id"])

    def _piece(self, id: str, offset: int, piece: bytes) -> int:
        path = f"/api/v1/imports/{_path(id)}/data?offset={offset}"
        found: Object = self.request("PUT", path, raw=piece)
        return int(found["held_bytes"])

    def wait_for_copy(self, copy: Object, timeout_s: float) -> Object:
        """Return the event that says how a copy ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self.list("events", object=copy["target"]):
                if event["message"].endswith(f"({copy['id']})"):
                    return event
            time.sleep(min(COPY_LOOK_S, timeout_s))
        raise TimeoutError(f"image {copy['image']} has not arrived after {timeout_s:.0f} s; see: novacron events")

    def delete_image(self, name: str, node: str | None = None) -> None:
        """Remove an image from all nodes, or from one."""
        self.request("DELETE", f"/api/v1/images/{_path(name)}" + (f"?{_query({'node': node})}" if node else ""))

    def unlimit_link(self, one: str, other: str) -> None:
        """Let migrations between two sites use all there is."""
        self.request("DELETE", f"/api/v1/links/{_path(one)}/{_path(other)}")

    def delete(self, kind: str, ref: str) -> None:
        """Delete a VM, a node or a token."""
        self.request("DELETE", f"/api/v1/{kind}/{_path(ref)}")

    def me(self) -> Object:
        """Return who calls, and what they may do."""
        found: Object = self.request("GET", "/api/v1/me")
        return found

    def create_project(self, name: str, **fields: Any) -> Object:
        """Create a project; fields as in ``POST /api/v1/projects``."""
        made: Object = self.request("POST", "/api/v1/projects", {"name": name, **fields})
        return made

    def configure_project(self, project: str, /, **changes: Any) -> Object:
        """Change a project's ``name``, ``description``, ``quota`` or ``host_network``."""
        changed: Object = self.request("PATCH", f"/api/v1/projects/{_path(project)}", changes)
        return changed

    def usage(self, project: str) -> Object:
        """Return what a project has (``usage``) and may have (``quota``)."""
        found: Object = self.request("GET", f"/api/v1/projects/{_path(project)}/usage")
        return found

    def create_user(self, name: str, **fields: Any) -> Object:
        """Create a user; fields as in ``POST /api/v1/users``, those that are None left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        made: Object = self.request("POST", "/api/v1/users", {"name": name, **body})
        return made

    def configure_user(self, ref: str, disabled: bool) -> Object:
        """Let a user do nothing any more, or again."""
        changed: Object = self.request("PATCH", f"/api/v1/users/{_path(ref)}", {"disabled": disabled})
        return changed

    def set_password(self, ref: str, password: str, present: str | None = None) -> None:
        """Set a user's password; of one's own, with the ``present`` one."""
        self.request("PUT", f"/api/v1/users/{_path(ref)}/password", {"password": password, "present": present})

    def grant(self, user: str, role: str, project: str | None) -> Object:
        """Give a user a role in a project, or (None) everywhere."""
        made: Object = self.request("POST", "/api/v1/grants", {"user": user, "role": role, "project": project})
        return made

    def create_token(self, name: str, **fields: Any) -> Object:
        """Create a token; fields as in ``POST /api/v1/tokens``, those that are None left out. Its ``secret`` is in the
        answer, this once."""
        body = {key: value for key, value in fields.items() if value is not None}
        made: Object = self.request("POST", "/api/v1/tokens", {"name": name, **body})
        return made

    def create_snapshot(self, vm: str, name: str, memory: bool = False, quiesce: bool = False) -> Object:
        """Begin to keep a VM as it is. ``wait("snapshots", id, ...)`` waits until it is ``ready`` or ``failed``."""
        body = {"name": name, "memory": memory, "quiesce": quiesce}
        begun: Object = self.request("POST", f"/api/v1/vms/{_path(vm)}/snapshots", body)
        return begun

    def revert_snapshot(self, vm: str, name: str) -> Object:
        """Begin to let a VM be as it was; the snapshot is ``ready`` again once that is done."""
        begun: Object = self.request("POST", f"/api/v1/vms/{_path(vm)}/snapshots/{_path(name)}/actions/revert")
        return begun

    def delete_snapshot(self, vm: str, name: str) -> Object:
        """Begin to let go of a snapshot; it is gone once that is done."""
        begun: Object = self.request("DELETE", f"/api/v1/vms/{_path(vm)}/snapshots/{_path(name)}")
        return begun

    def create_volume(self, name: str, **fields: Any) -> Object:
        """Begin to create a volume; fields as in ``POST /api/v1/volumes``, those that are None left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        begun: Object = self.request("POST", "/api/v1/volumes", {"name": name, **body})
        return begun

    def configure_volume(self, ref: str, **changes: Any) -> Object:
        """Change a volume's ``name``, ``size_mib``, ``iops`` or ``bytes_per_s``."""
        changed: Object = self.request("PATCH", f"/api/v1/volumes/{_path(ref)}", changes)
        return changed

    def attach_volume(self, ref: str, vm: str, read_only: bool = False, boot_order: int | None = None) -> Object:
        """Give a volume to a VM. ``act("volumes", ref, "detach")`` takes it away."""
        return self.act("volumes", ref, "attach", {"vm": vm, "read_only": read_only, "boot_order": boot_order})

    def rename_node(self, name: str, new: str) -> Object:
        """Give a node another name, which its agent takes over by itself."""
        return self.act("nodes", name, "rename", {"name": new})

    def create_network(self, name: str, **fields: Any) -> Object:
        """Create a network; fields as in ``POST /api/v1/networks``, those that are None left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        made: Object = self.request("POST", "/api/v1/networks", {"name": name, **body})
        return made

    def create_security_group(self, name: str, rules: Sequence[Object]) -> Object:
        """Create a security group; rules as in ``POST /api/v1/security-groups``."""
        made: Object = self.request("POST", "/api/v1/security-groups", {"name": name, "rules": [*rules]})
        return made

    def configure_security_group(self, name: str, rules: Sequence[Object]) -> Object:
        """Give a security group these rules, and no others."""
        changed: Object = self.request("PATCH", f"/api/v1/security-groups/{_path(name)}", {"rules": [*rules]})
        return changed

    def add_floating_address(self, address: str) -> Object:
        """Add an address that can lead to VMs; ``act("floating-addresses", address, "detach")`` undoes that."""
        made: Object = self.request("POST", "/api/v1/floating-addresses", {"address": address})
        return made

    def attach_floating_address(self, address: str, vm: str, network: str | None = None) -> Object:
        """Let a floating address lead to a VM."""
        return self.act("floating-addresses", address, "attach", {"vm": vm, "network": network})

    def create_forward(self, vm: str, vm_port: int, port: int, **fields: Any) -> Object:
        """Let a port lead to one of a VM; fields as in ``POST /api/v1/forwards``, those that are None left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        made: Object = self.request("POST", "/api/v1/forwards", {"vm": vm, "vm_port": vm_port, "port": port, **body})
        return made

    def export_data(self, id: str, offset: int) -> bytes:
        """Return a piece of an export's file. ``archive.export`` fetches it whole."""
        return self._fetch(f"/api/v1/exports/{_path(id)}/data?offset={offset}")

    def export_firmware_state(self, id: str) -> Object:
        """Return what firmware and TPM of an exported VM remembered; ``create_vm`` takes it. It is secret."""
        found: Object = self.request("GET", f"/api/v1/exports/{_path(id)}/firmware-state")
        return found

    def console_log(self, vm: str, bytes_max: int = 64 * 1024) -> bytes:
        """Return the end of what a VM printed on its serial line. It is the guest's: it may hold anything."""
        return self._fetch(f"/api/v1/vms/{_path(vm)}/console-log?bytes={bytes_max}")

    def screenshot(self, vm: str) -> bytes:
        """Return what a VM's display shows, as a PNG file."""
        return self._fetch(f"/api/v1/vms/{_path(vm)}/screenshot")

    def join_token(self, node: str | None = None, ttl_s: int = 3600) -> str:
        """Return a one-time token with which a host joins."""
        return str(self.request("POST", "/api/v1/nodes/join-tokens", {"node": node, "ttl_s": ttl_s})["token"])

    def wait(
        self, kind: str, ref: str, until: Callable[[Object | None], bool], timeout_s: float, poll_s: float = LONG_POLL_S
    ) -> Object | None:
        """Wait until ``until(object)`` is true (None when it is gone) and return it. Raises TimeoutError.

        Waits on the server, so a change is seen within milliseconds.
        """
        deadline = time.monotonic() + timeout_s
        revision = 0
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"{kind} {ref}: not there after {timeout_s:.0f} s")
            try:
                wait_s = max(1, int(min(left_s, poll_s)))
                query = _query({"newer_than": str(revision), "timeout_s": str(wait_s)})
                found: Object | None = self.request("GET", f"/api/v1/{kind}/{_path(ref)}?{query}")
            except ApiError as error:
                if error.status != 404:
                    raise
                found = None
            if until(found):
                return found
            if found is None:
                raise TimeoutError(f"{kind} {ref} is gone")
            revision = found["revision"]

    def stream(self, after: int | None = None, kinds: str | None = None) -> Iterator[tuple[str, Object]]:
        """Yield ``(kind, object)`` for every change from now on, or after a revision; resumes when cut off."""
        failures = 0
        while True:
            headers = {"Authorization": f"Bearer {self.config.token}", "Accept": "text/event-stream"}
            if after is not None:
                headers["Last-Event-ID"] = str(after)
            try:
                query = _query({"kinds": kinds} if kinds else {})
                answer = self._pool.request(
                    "GET", f"{self.config.url}/api/v1/events?{query}", headers=headers, preload_content=False,
                    timeout=urllib3.Timeout(connect=5, read=60), retries=False,
                )  # fmt: skip
                if answer.status != 200:
                    self._decode(answer)
                failures = 0
                kind, data = "", ""
                for line in _lines(answer):
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: "):
                        data = line[6:]
                    elif line.startswith("id: "):
                        after = int(line[4:])
                    elif not line and data:
                        if kind != "interrupted":
                            yield kind, json.loads(data)
                        kind, data = "", ""
            except urllib3.exceptions.HTTPError as error:
                failures += 1
                if failures > RETRIES:
                    raise Unreachable(f"the event stream broke off: {error}") from error
                time.sleep(failures)


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    for chunk in answer.stream(None):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode()


def _path(ref: str) -> str:
    from urllib.parse import quote

    return quote(ref, safe="")


def _query(values: dict[str, str]) -> str:
    from urllib.parse import urlencode

    return urlencode(values)
