"""What the members have agreed on in etcd, through its JSON gateway (``/v3``), and whether it can agree at all."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

from novacron.local.database_cluster.patroni_config import NAMESPACE
from novacron.local.database_cluster.settings import Cluster, ClusterFailed, EtcdAccess

ANSWER_S, CONNECT_S = 3.0, 1.0
"""A machine without power does not even refuse a connection."""
VERSION_MIN = (3, 4)
CERTIFICATES = (
    "put valid ones into the files of etcd, and into those of --etcd-ca, --etcd-certificate and --etcd-key: Patroni and"
    " etcd read them at the next connection; only for another authority of clients, restart etcd"
)
"""What to do where etcd and its clients refuse one another's certificates."""
WRONG = (httpx.HTTPError, OSError, ValueError, KeyError)


class EtcdHealth(NamedTuple):
    """What each endpoint said."""

    versions: dict[str, str]
    """By endpoint, of those that answered."""
    errors: dict[str, str]
    """By endpoint, of those that did not."""
    agrees: bool
    """A majority is there: what is read is the latest, and can be changed."""
    ends_at_s: Mapping[str, float] = MappingProxyType({})
    """By endpoint, when the certificate ends that it showed."""


class ClusterKeys(NamedTuple):
    """What Patroni's members have written, without the cluster's prefix."""

    values: dict[str, str]

    @property
    def leader(self) -> str | None:
        return self.values.get("leader")

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """What each member last said of itself, by name."""
        prefix = "members/"
        members = {}
        for key, value in self.values.items():
            if key.startswith(prefix):
                members[key.removeprefix(prefix)] = self._parsed(value)
        return members

    def document(self, key: str) -> dict[str, Any]:
        """Return one of the documents: ``sync``, ``config``, ``status``; empty if there is none."""
        return self._parsed(self.values.get(key, "{}"))

    @staticmethod
    def _parsed(text: str) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


class Etcd:
    """A few questions to etcd."""

    def __init__(self, access: EtcdAccess) -> None:
        self._endpoints = access.endpoints
        """Those that answered last come first."""
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
        self._http = httpx.Client(verify=context, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), trust_env=False)

    def close(self) -> None:
        self._http.close()

    def health(self) -> EtcdHealth:
        """Ask each endpoint for its version, and any of them to agree with the others."""
        versions, errors, ends_at_s = dict[str, str](), dict[str, str](), dict[str, float]()

        def ask(endpoint: str) -> None:
            try:
                answer = self._http.get(f"{endpoint}/version")
                answer.raise_for_status()
                versions[endpoint] = str(answer.json()["etcdserver"])
                stream = answer.extensions.get("network_stream")
                tls = None if stream is None else stream.get_extra_info("ssl_object")
                if tls is not None:
                    ends_at_s[endpoint] = ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"])
            except WRONG as error:
                errors[endpoint] = str(error) or type(error).__name__

        with ThreadPoolExecutor(len(self._endpoints)) as pool:
            list(pool.map(ask, self._endpoints))
        self._endpoints = tuple(sorted(self._endpoints, key=lambda endpoint: endpoint in errors))
        return EtcdHealth(versions, errors, self._agrees(list(versions)), ends_at_s)

    def _agrees(self, endpoints: list[str]) -> bool:
        for endpoint in endpoints:
            try:
                self._post(endpoint, "/v3/kv/range", {"key": _b64(NAMESPACE)})
            except WRONG:
                continue
            return True
        return False

    def keys(self, cluster: str) -> ClusterKeys:
        """Return what the members of a cluster have written: the latest or, without a majority, what one endpoint knew.

        Raises ClusterFailed.
        """
        why = "no endpoint"
        for serializable in (False, True):
            for endpoint in self._endpoints:
                try:
                    return self._keys(endpoint, f"{NAMESPACE}{cluster}/", serializable=serializable)
                except WRONG as error:
                    why = str(error) or type(error).__name__
        advice = f"; if certificates have ended, {CERTIFICATES}" if is_of_certificates(why) else ""
        raise ClusterFailed(f"etcd can't be reached at {', '.join(self._endpoints)}: {why}{advice}")

    def _keys(self, endpoint: str, prefix: str, *, serializable: bool) -> ClusterKeys:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        question = {"key": _b64(prefix), "range_end": _b64(end), "serializable": serializable}
        rows = self._post(endpoint, "/v3/kv/range", question).get("kvs", [])
        return ClusterKeys({_text(row["key"]).removeprefix(prefix): _text(row.get("value", "")) for row in rows})

    def remove_leader(self, cluster: Cluster, leader: str) -> bool:
        """Take the leader's key away, if it is still this member's; return whether it was. Raises ClusterFailed.

        Only for a leader that is known to be off: while it lives, it would believe for a moment that it leads.
        """
        key = _b64(f"{NAMESPACE}{cluster.name}/leader")
        change = {
            "compare": [{"key": key, "target": "VALUE", "result": "EQUAL", "value": _b64(leader)}],
            "success": [{"requestDeleteRange": {"key": key}}],
        }
        why = ""
        for endpoint in self._endpoints:
            try:
                return bool(self._post(endpoint, "/v3/kv/txn", change).get("succeeded", False))
            except WRONG as error:
                why = str(error) or type(error).__name__
        raise ClusterFailed(f"etcd accepts no writes: {why}")

    def _post(self, endpoint: str, path: str, question: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.post(endpoint + path, json=question)
        answer.raise_for_status()
        document = answer.json()
        if not isinstance(document, dict):
            raise ValueError(f"{endpoint}{path} does not answer like etcd")
        return document


def is_of_certificates(words: str) -> bool:
    """Say whether a connection failed because of a certificate, that of either side."""
    return "certificate" in words.lower()


def is_old(version: str) -> bool:
    """Say whether a version of etcd is too old for Patroni's ``etcd3``."""
    try:
        return tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN
    except ValueError:
        return True


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")
