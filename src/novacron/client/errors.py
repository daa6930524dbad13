"""What can go wrong between a program and the API: a type for each kind of refusal, with its code."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The API refused: carries its problem document (RFC 9457).

    ``status`` is the HTTP status, ``code`` names the kind of refusal and stays the same from version to version.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem
        self.status = int(problem.get("status", 0))
        self.code = str(problem.get("code", "unknown"))
        detail, field = problem.get("detail", "refused"), problem.get("field")
        self.field = None if field is None else str(field)
        """The field or parameter at fault, as it was written."""
        self.text = f"{field}: {detail}" if field else str(detail)
        self.hint = str(problem.get("hint") or "")
        super().__init__(f"{self.text}\n{self.hint}" if self.hint else self.text)


class InvalidInputError(ApiError):
    """A field or parameter is missing, unknown or can never be right; ``field`` names it."""


class TooLargeError(InvalidInputError):
    """The request is too large."""


class UnauthenticatedError(ApiError):
    """The token is missing, wrong, expired or revoked."""


class ForbiddenError(ApiError):
    """The caller's role does not allow it."""


class QuotaExceededError(ForbiddenError):
    """The project's quota is used up."""


class NotFoundError(ApiError):
    """There is no such object, or the caller may not see it."""


class ConflictError(ApiError):
    """The present state does not allow it, for example a name that is in use."""


class IllegalStateError(ConflictError):
    """The object's state does not allow it, for example pausing a stopped VM."""


class NoCapacityError(ConflictError):
    """No node has room, or not the named one."""


class RevisionGoneError(ApiError):
    """The changes after this revision are no longer kept: list again, and follow from there."""


class StaleRevisionError(ApiError):
    """The object has changed since it was read."""


class IdempotencyMismatchError(ApiError):
    """Another request has used this idempotency key."""


class TooManyRequestsError(ApiError):
    """The caller sends too many requests."""


class UnavailableError(ApiError):
    """Too busy, or what the request needs can't be reached: it was tried again, in vain."""


class ServerFailedError(ApiError):
    """The server has a defect; its log has the details under the reference in the text."""


BY_CODE: dict[str, type[ApiError]] = {
    "invalid-input": InvalidInputError, "too-large": TooLargeError, "unauthenticated": UnauthenticatedError,
    "forbidden": ForbiddenError, "quota-exceeded": QuotaExceededError, "not-found": NotFoundError,
    "conflict": ConflictError, "illegal-state": IllegalStateError, "no-capacity": NoCapacityError,
    "revision-gone": RevisionGoneError, "stale-revision": StaleRevisionError,
    "idempotency-mismatch": IdempotencyMismatchError, "too-many-requests": TooManyRequestsError,
    "unavailable": UnavailableError, "internal-error": ServerFailedError,
}  # fmt: skip
BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidInputError, 401: UnauthenticatedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError,
    410: RevisionGoneError, 412: StaleRevisionError, 413: TooLargeError, 422: IdempotencyMismatchError,
    429: TooManyRequestsError, 500: ServerFailedError, 503: UnavailableError,
}  # fmt: skip
"""For codes that this version does not know."""


def refusal(problem: dict[str, Any]) -> ApiError:
    """Return a problem document as an error of its kind."""
    kind = BY_CODE.get(str(problem.get("code"))) or BY_STATUS.get(int(problem.get("status", 0)), ApiError)
    return kind(problem)


class ArchiveError(Exception):
    """A file is no archive that could be a VM, or could not be made one: says why."""


class Unreachable(Exception):
    """No answer from the API: says from where, and why."""


class UnexpectedAnswer(Exception):
    """The API answered with what this version of the SDK has no type for, such as a new state: update NovaCron."""
