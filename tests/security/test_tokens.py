"""No token leads to more than its own rights."""

from __future__ import annotations

from typing import Any

import pytest

from novacron.model.access import Access, Right, Role, access
from tests.integration.conftest import Api

LIMITED: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    ({"scopes": ["read", "manage"]}, {}, "scopes"),
    ({"scopes": ["read", "manage"]}, {"scopes": ["read", "write"]}, "scopes"),
    ({"project": "prey"}, {}, "project"),
    ({"expires_in_s": 600}, {}, "expires_in_s"),
    ({"expires_in_s": 600}, {"expires_in_s": 3600}, "expires_in_s"),
)


@pytest.mark.parametrize("of", [None, "tok-admin", "tok-service"])
@pytest.mark.parametrize(("own", "asked", "field"), LIMITED)
def test_a_token_makes_none_with_more_than_its_own(
    api: Api, own: dict[str, Any], asked: dict[str, Any], field: str, of: str | None
) -> None:
    """Whoever the new token's user is, and although the limited token is an administrator's."""
    if api("GET", "/api/v1/users/tok-service").status == 404:
        assert api("POST", "/api/v1/users", {"name": "tok-admin"}).status == 201
        assert api("POST", "/api/v1/grants", {"user": "tok-admin", "role": "administrator"}).status == 201
        assert api("POST", "/api/v1/users", {"name": "tok-service", "kind": "service", "project": "prey"}).status == 201
        assert (
            api("POST", "/api/v1/grants", {"user": "tok-service", "role": "operator", "project": "prey"}).status == 201
        )
    made = api("POST", "/api/v1/tokens", {"name": "limited", **own})
    assert made.status == 201, made.body
    limited = made.body["secret"]
    user = {} if of is None else {"user": of}
    answer = api("POST", "/api/v1/tokens", {"name": "more", **user, **asked}, token=limited)
    if "project" in own and of == "tok-admin":  # a caller within a project does not see that user
        assert answer.status == 404
    else:
        assert answer.status == 403 and answer.problem["field"] == field, answer.body
    less = {"scopes": ["read"], "project": "prey", "expires_in_s": 60}
    if of is None:
        assert api("POST", "/api/v1/tokens", {"name": "less", **less}, token=limited).status == 201


def test_a_token_grants_no_role_with_more_than_its_own_rights(api: Api) -> None:
    api("POST", "/api/v1/users", {"name": "tok-friend"})
    limited = api("POST", "/api/v1/tokens", {"name": "manages", "scopes": ["read", "manage"]}).body["secret"]
    role = {"user": "tok-friend", "role": "administrator"}
    answer = api("POST", "/api/v1/grants", role, token=limited)
    assert answer.status == 403 and answer.problem["field"] == "role"
    assert api("POST", "/api/v1/grants", {**role, "role": "viewer"}, token=limited).status == 201


def test_a_project_that_a_caller_does_not_see_does_not_exist_for_tokens(api: Api) -> None:
    api("POST", "/api/v1/users", {"name": "tok-stranger"})
    stranger = api("POST", "/api/v1/tokens", {"name": "s", "user": "tok-stranger"}).body["secret"]
    answers = [api("POST", "/api/v1/tokens", {"name": "p", "project": name}, token=stranger)
               for name in ("prey", "none")]  # fmt: skip
    assert [answer.status for answer in answers] == [400, 400]
    assert answers[0].problem["detail"].replace("prey", "none") == answers[1].problem["detail"]


def test_rights_cover_equal_and_fewer_rights_only() -> None:
    read = frozenset({Right.READ})
    administrator, member = access([(None, Role.ADMINISTRATOR)]), access([("a", Role.MEMBER)])
    assert administrator.covers(member) and member.covers(member) and member.covers(Access())
    assert member.covers(member.within(read, None)) and administrator.covers(member.within(None, "b"))
    assert not member.covers(administrator) and not member.within(read, None).covers(member)
    assert not member.covers(access([("b", Role.VIEWER)])) and not member.covers(access([(None, Role.VIEWER)]))
