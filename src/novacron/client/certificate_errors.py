"""What a client says when certificates keep it from the API: which one is not valid, since when, and what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

from novacron.client.config import Config

EXPIRED = frozenset({9, 10})
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
CAUSES_MAX = 8
LOOK_S = 5.0


def explain(config: Config, error: Exception) -> str:
    """Return why there is no answer, of the error with which an HTTP library said so. May ask the server for its
    certificate."""
    text = str(error) or type(error).__name__
    code = next((code for cause in _causes(error) if (code := getattr(cause, "verify_code", None)) is not None), None)
    if code is None:
        return text
    from novacron import pki  # loads slowly, and is needed only now

    now_s = time.time()
    try:
        trusted = pki.validity(config.ca.encode()).objection(now_s) if config.ca else None
        if trusted is not None:
            return (
                f"the authority's certificate in your settings {trusted}; take the server's ca.crt as it is now:"
                " novacron context add NAME --replace --ca FILE"
            )
        if code in EXPIRED:
            objection = pki.served_validity(config.url, LOOK_S).objection(now_s) or "is not valid; is a clock wrong?"
            return (
                f"the server's certificate {objection}; on its machine: systemctl restart novacron-server,"
                " which issues another"
            )
    except (OSError, ValueError):  # it can't be looked at: what is known is still worth saying
        return text
    return f"{text}; is the authority in your settings that of this server? see: novacron context show"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it wraps, and what caused it."""
    current: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if current is None:
            return
        yield current
        wrapped = next((argument for argument in current.args if isinstance(argument, BaseException)), None)
        current = wrapped or getattr(current, "reason", None) or current.__cause__ or current.__context__
        if not isinstance(current, BaseException):
            return
