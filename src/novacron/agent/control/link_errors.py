"""Why the agent can't connect, for people: which certificate is not valid, since when, and what to do."""

from __future__ import annotations

import asyncio
import ssl
import time

from novacron import pki
from novacron.agent.identity import Identity, rejoin_advice

EXPIRED = frozenset({9, 10})
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
LOOK_S = 5.0
REFUSED_HINT = (
    "to let this host join again: novacron node join-token --node NAME on the server; if it should not: stop its agent"
)


async def explain(identity: Identity, error: Exception) -> str:
    """Return what keeps a node's agent from its server, as ``error`` was raised by connecting or by the connection."""
    text = str(error) or type(error).__name__
    try:
        return await asyncio.to_thread(_explain, identity, error, text)
    except (OSError, ValueError):  # what it is about can't be read: what is known is still worth saying
        return text


async def advise(identity: Identity) -> str:
    """Return what to do when the server refuses this node."""
    try:
        return await asyncio.to_thread(identity.objection) or REFUSED_HINT
    except (OSError, ValueError):
        return REFUSED_HINT


def _explain(identity: Identity, error: Exception, text: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_server(identity, error.verify_code, text)
    own = identity.objection()
    return text if own is None else f"{own} ({text})"


def _of_server(identity: Identity, verify_code: int, text: str) -> str:
    if verify_code not in EXPIRED:
        return text
    now_s = time.time()
    authority = pki.validity(identity.ca.read_bytes()).objection(now_s)
    if authority is not None:
        return f"the authority's certificate that this node trusts {authority}; {rejoin_advice(identity.name)} ({text})"
    objection = pki.served_validity(identity.link_url, LOOK_S).objection(now_s)
    return f"the server's certificate {objection or 'is not valid'}; there: systemctl restart novacron-server ({text})"
