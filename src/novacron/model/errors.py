"""Which errors users can meet, each with a stable code and an HTTP status (RFC 9457)."""

from __future__ import annotations


class NovaError(Exception):
    """Base of every error that a user is shown.

    ``detail`` says what was being done, to what, and what was found; ``hint`` says what to do next;
    ``field`` names the input that is at fault, if one is.
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
    """The caller is known and may not do this, for example a viewer who would delete a VM."""

    code = "forbidden"
    status = 403
    title = "Not allowed"


class QuotaExceeded(Forbidden):
    """The project would have more than it may, for example one VM more than its quota."""

    code = "quota-exceeded"
    title = "Quota exceeded"


class TooManyRequests(NovaError):
    """The caller asks too often; ``Retry-After`` says when to go on."""

    code = "too-many-requests"
    status = 429
    title = "Too many requests"


class NotFound(NovaError):
    """The named object does not exist, for example a VM that was deleted."""

    code = "not-found"
    status = 404
    title = "Not found"


class Conflict(NovaError):
    """The request is well formed but does not fit the present state, for example a name in use."""

    code = "conflict"
    status = 409
    title = "Conflict"


class IllegalState(Conflict):
    """The action is not allowed in the object's state, for example pausing a stopped VM."""

    code = "illegal-state"
    title = "Not allowed in this state"


class NoCapacity(Conflict):
    """No node, or not the named one, has room for the VM."""

    code = "no-capacity"
    title = "No room"


class Gone(NovaError):
    """The revision asked for is older than what is kept; list again and resume from there."""

    code = "revision-gone"
    status = 410
    title = "Revision no longer kept"


class PreconditionFailed(NovaError):
    """If-Match names a revision that is not the object's present one."""

    code = "stale-revision"
    status = 412
    title = "The object has changed"


class IdempotencyMismatch(NovaError):
    """An Idempotency-Key was used again with a different request."""

    code = "idempotency-mismatch"
    status = 422
    title = "Idempotency-Key used for another request"


class Unavailable(NovaError):
    """Something the request needs can't be reached now, for example the database; try again."""

    code = "unavailable"
    status = 503
    title = "Temporarily unavailable"
