"""The errors that users see, each with a stable code and an HTTP status (RFC 9457)."""

from __future__ import annotations

import msgspec

MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding bytes raises that come from a file or from others: ``msgspec`` lets text that is no UTF-8 through as
ValueError, and what is nested too deeply as RecursionError."""


class NovaError(Exception):
    """Base of every error that users see.

    ``detail`` says what failed, on which object, and why; ``hint`` says what to do next; ``field`` names the input at
    fault, if there is one.
    """

    code = "internal-error"
    status = 500
    title = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.field}: {self.detail}" if self.field else self.detail
        return f"{text} ({self.hint})" if self.hint else text


class InvalidInput(NovaError):
    """A field has a value that can never be right, for example ``memory_mib: -1``."""

    code = "invalid-input"
    status = 400
    title = "Invalid input"


class Unauthenticated(NovaError):
    """The token is missing, wrong, expired or revoked."""

    code = "unauthenticated"
    status = 401
    title = "Not authenticated"


class Forbidden(NovaError):
    """The caller is authenticated but not allowed to do this, for example a viewer who deletes a VM."""

    code = "forbidden"
    status = 403
    title = "Not allowed"


class QuotaExceeded(Forbidden):
    """The request would exceed the project's quota."""

    code = "quota-exceeded"
    title = "Quota exceeded"


class TooManyRequests(NovaError):
    """The caller sends requests too often; ``Retry-After`` says when to try again."""

    code = "too-many-requests"
    status = 429
    title = "Too many requests"


class NotFound(NovaError):
    """The named object does not exist, for example a VM that was deleted."""

    code = "not-found"
    status = 404
    title = "Not found"


class Conflict(NovaError):
    """The request is valid but conflicts with the present state, for example a name that is in use."""

    code = "conflict"
    status = 409
    title = "Conflict"


class IllegalState(Conflict):
    """The action is not allowed in the object's state, for example pausing a stopped VM."""

    code = "illegal-state"
    title = "Not allowed in this state"


class NoCapacity(Conflict):
    """No node, or not the named one, has room for the VM or takes the import."""

    code = "no-capacity"
    title = "No capacity"


class Gone(NovaError):
    """The requested revision is no longer kept; list again and resume from there."""

    code = "revision-gone"
    status = 410
    title = "Revision no longer kept"


class PreconditionFailed(NovaError):
    """The revision in If-Match is not the object's present one."""

    code = "stale-revision"
    status = 412
    title = "The object has changed"


class IdempotencyMismatch(NovaError):
    """An Idempotency-Key was used again with a different request."""

    code = "idempotency-mismatch"
    status = 422
    title = "Idempotency-Key used for another request"


class Unavailable(NovaError):
    """Something that the request needs, for example the database, can't be reached now; try again."""

    code = "unavailable"
    status = 503
    title = "Temporarily unavailable"
