"""Is what runs well: the platform that this user's settings lead to."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import urlsplit

from novacron import __version__, pki
from novacron.client.api import Client, Object, load_config
from novacron.client.errors import ApiError, Unreachable
from novacron.client.unreconciled import way_out
from novacron.local.doctor.finding import Finding, bad, ok, warning
from novacron.model import mac
from novacron.model.condition import EVENTS_OF_THEIR_OWN, KEEPS_VMS_AWAY, ConditionReason, ConditionStatus

SKEW_S_MAX = 1.0
STALE_S = 120.0
SHOWN_MAX = 5
SHOWN_S_MAX = 10.0
"""Time limit of looking at the certificate that the API shows."""


async def platform() -> list[Finding]:
    try:
        config = load_config()
    except Unreachable:
        return [ok("platform", "this user has no settings for a server, so none was checked")]
    try:
        return await asyncio.to_thread(lambda: list(_platform(Client(config))))
    except Unreachable as error:
        return [
            bad("platform", str(error), "check that the server runs, and NOVACRON_URL: journalctl -u novacron-server")
        ]
    except ApiError as error:
        return [bad("platform", str(error), "check the token: novacron whoami")]


def _platform(client: Client) -> Iterator[Finding]:
    ready, reasons = client.ready()
    yield (
        ok("server", f"{client.config.url} is ready")
        if ready
        else bad(
            "server",
            f"{client.config.url} is not ready: {reasons}",
            "see its log; for the database: novacron doctor --database",
        )
    )
    yield from _versions(client)
    nodes = list(client.list("nodes"))
    yield from _nodes(nodes)
    vms = list(client.list("vms"))
    yield from _vms(vms)
    yield from _shared_macs(vms)
    yield from _networks(list(client.list("networks")))
    yield from _unreconciled(list(client.list("unreconciled-vms")))
    yield from _certificates(nodes)
    yield from _shown_certificate(client.config.url)
    yield from _agents(client, [node["name"] for node in nodes if node["status"]["ready"]])


def _versions(client: Client) -> Iterator[Finding]:
    version = re.search(r'^novacron_build_info\{[^}]*version="([^"]+)"', client.metrics(), re.MULTILINE)
    server = version[1] if version else "unknown"
    if server != __version__:
        yield warning("versions", f"the server is {server}, this is {__version__}", "install the same version")
    else:
        yield ok("versions", f"server and this command are {server}")


def _names(objects: list[Object]) -> str:
    names = [item["name"] for item in objects]
    return ", ".join(names[:SHOWN_MAX]) + (f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else "")


def _nodes(nodes: list[Object]) -> Iterator[Finding]:
    if not nodes:
        yield warning(
            "nodes",
            "there are none",
            "novacron node join-token --node NAME --file FILE; then on that host: novacron agent --join @FILE",
        )
        return
    away = [node for node in nodes if not node["status"]["ready"]]
    if away:
        yield bad("nodes", f"not connected: {_names(away)}", "check the agents there: systemctl status novacron-agent")
    skewed = [node for node in nodes if abs(node["status"].get("clock_skew_s", 0.0)) > SKEW_S_MAX]
    if skewed:
        yield warning("nodes", f"the clock is wrong on: {_names(skewed)}", "apt-get install chrony there")
    for node in nodes:
        inventory = node["status"]["inventory"] or {}
        for missing in inventory.get("missing", ()):
            yield warning(f"node {node['name']}", missing, "novacron doctor on that host says more")
        version = inventory.get("agent_version", __version__)
        if version != __version__:
            yield warning(
                f"node {node['name']}",
                f"its agent is {version}, this is {__version__}",
                "upgrade it: its VMs keep running",
            )
        yield from _conditions(node)
    if not away:
        yield ok("nodes", f"all {len(nodes)} are connected")


def _conditions(node: Object) -> Iterator[Finding]:
    """Tell what is wrong with a node that nothing else here tells."""
    for condition in node["status"].get("conditions", ()):
        unheard = condition["reason"] == ConditionReason.NOT_HEARD_SINCE_RESTORE
        if condition["status"] != ConditionStatus.FALSE or (condition["type"] in EVENTS_OF_THEIR_OWN and not unheard):
            continue
        keeps_vms_away = condition["reason"] in KEEPS_VMS_AWAY
        fault, _, advice = condition["message"].rpartition("; ")
        finding = bad if keeps_vms_away or unheard else warning
        effect = ": no VMs are placed there" if keeps_vms_away else ""
        yield finding(f"node {node['name']}", (fault or advice) + effect, advice)


def _vms(vms: list[Object]) -> Iterator[Finding]:
    failed = [vm for vm in vms if vm["status"]["state"] == "failed"]
    unplaced = [vm for vm in vms if vm["node"] is None and _age_s(vm["created_at"]) > STALE_S]
    if failed:
        yield bad("VMs", f"have failed: {_names(failed)}", f"see: novacron vm show {failed[0]['name']}")
    if unplaced:
        yield bad("VMs", f"have no node: {_names(unplaced)}", f"novacron vm placement {unplaced[0]['name']} says why")
    if not failed and not unplaced:
        yield ok("VMs", f"none of {len(vms)} has failed or waits for a node")


def _unreconciled(items: list[Object]) -> Iterator[Finding]:
    """VMs of which nodes know more than the database."""
    for item in items[:SHOWN_MAX]:
        yield bad(f"VM {item['vm_name']}", item["reason"], way_out(item))
    if len(items) > SHOWN_MAX:
        yield bad("VMs", f"nodes have newer records of {len(items)} VMs than the database", "novacron vm unreconciled")


def _networks(networks: list[Object]) -> Iterator[Finding]:
    """Networks that can't be set up, interfaces that are closed."""
    hindered = [network for network in networks if network.get("reason_code")]
    for network in hindered[:SHOWN_MAX]:
        advice = f"novacron events --object {network['name']}; docs/runbooks/alerts.md#networkhindered"
        yield bad(f"network {network['name']}", f"{network['reason']} ({network['reason_code']})", advice)
    if len(hindered) > SHOWN_MAX:
        yield bad("networks", f"{len(hindered)} do not work: {_names(hindered)}", "novacron network list")


def _shared_macs(vms: list[Object]) -> Iterator[Finding]:
    """Find VMs from before each MAC address was given to one interface only."""
    holders: dict[str, list[Object]] = {}
    for vm in vms:
        nics = vm["spec"]["nics"]
        for number, address in enumerate([nic["mac"] for nic in nics] if nics else [vm["spec"]["mac"]]):
            holders.setdefault(address or mac.from_id(vm["id"], number), []).append(vm)
    for address, several in sorted(holders.items()):
        if len(several) > 1:
            yield warning(
                "MAC addresses", f"{_names(several)} have the same MAC address, {address}",
                f"stop one of them, and give it another: novacron vm set {several[-1]['name']} --mac new",
            )  # fmt: skip


def _age_s(text: str) -> float:
    return time.time() - datetime.fromisoformat(text).timestamp()


def _certificates(nodes: list[Object]) -> Iterator[Finding]:
    for node in nodes:
        name, ends_at_s = node["name"], node["status"].get("certificate_ends_at_s", 0.0)
        left_s = ends_at_s - time.time()
        if not ends_at_s or left_s > pki.ENDS_SOON_S:
            continue
        rejoin = f"novacron node join-token --node {name}, then on its host: novacron agent --rejoin @FILE"
        if left_s <= 0:
            yield bad(f"node {name}", f"its agent's certificate ended on {pki.utc(ends_at_s)}", rejoin)
        else:
            start = "" if node["status"]["ready"] else "start its agent, which renews it once connected; or "
            yield warning(f"node {name}", f"its agent's certificate ends on {pki.utc(ends_at_s)}", start + rejoin)


def _shown_certificate(url: str) -> Iterator[Finding]:
    """Look at the certificate that users are shown, which may be a given one, or that of a proxy."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        return
    try:
        shown = ssl.get_server_certificate((parts.hostname, parts.port or 443), timeout=SHOWN_S_MAX)
        ends_at_s = pki.expires_at_s(shown.encode())
    except (OSError, ValueError) as error:
        yield warning("API", f"its certificate can't be checked: {error}", "try again")
        return
    yield from shown_until(ends_at_s, time.time())


def shown_until(ends_at_s: float, now_s: float) -> Iterator[Finding]:
    """Say how long the API's certificate is good for."""
    advice = (
        "if it is from --tls-certificate or a proxy: renew it there (certbot renew); the server's own:"
        " systemctl restart novacron-server"
    )
    if ends_at_s <= now_s:
        yield bad("API", f"its certificate ended on {pki.utc(ends_at_s)}", advice)
    elif ends_at_s - now_s < pki.ENDS_SOON_S:
        yield warning("API", f"its certificate ends on {pki.utc(ends_at_s)}", advice)
    else:
        yield ok("API", f"its certificate is valid for {(ends_at_s - now_s) / 86_400:.0f} days")


def _agents(client: Client, nodes: list[str]) -> Iterator[Finding]:
    for node in nodes[:200]:
        try:
            client.metrics(node)
        except ApiError as error:
            yield warning(f"node {node}", f"its agent does not report its status: {error}", "see its log")
