"""A role that nobody asked for changes nothing for a user, and inviting tells nothing about who exists."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import Answer, Api


class Person:
    """A user with a token."""

    def __init__(self, api: Api, name: str, **roles: str) -> None:
        self.name, self._api = name, api
        assert api("POST", "/api/v1/users", {"name": name}).status == 201
        for project, role in roles.items():
            body = {"user": name, "role": role, "project": project.replace("_", "-")}
            assert api("POST", "/api/v1/grants", body).status == 201
        self.secret: str = api("POST", "/api/v1/tokens", {"name": "t", "user": name}).body["secret"]

    def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        return self._api(method, f"/api/v1/{path}", body, token=self.secret)

    @property
    def project(self) -> str:
        return str(self("GET", "me").body["project"])

    def invite(self, name: str, role: str = "viewer", project: str = "inv-evil") -> Answer:
        return self("POST", "grants", {"user": name, "role": role, "project": project})


@pytest.fixture(scope="module")
def evil(api: Api) -> Person:
    """A project's administrator, who manages nobody else."""
    for name in ("inv-evil", "inv-own"):
        assert api("POST", "/api/v1/projects", {"name": name}).status == 201
    return Person(api, "inv-administrator", inv_evil="administrator")


def test_a_role_changes_nothing_for_a_user_before_they_accept_it(api: Api, evil: Person) -> None:
    victim = Person(api, "inv-victim", inv_own="member")
    invited = evil.invite("inv-victim")
    assert invited.status == 202
    assert victim.project == "inv-own" and victim("GET", "projects/inv-evil").status == 404
    assert [grant["project"] for grant in victim("GET", "grants").body["items"]] == ["inv-own"]
    mine = victim("GET", "invitations").body["items"]
    assert [(item["project"], item["role"], item["actor"]) for item in mine] == [
        ("inv-evil", "viewer", "inv-administrator")
    ]
    stranger = Person(api, "inv-stranger")
    assert stranger("GET", "invitations").body["items"] == []
    for by in (stranger, evil):
        assert by("POST", f"invitations/{mine[0]['id']}/actions/accept").status == 404
    assert stranger("DELETE", f"invitations/{mine[0]['id']}").status == 404
    accepted = victim("POST", f"invitations/{mine[0]['id']}/actions/accept")
    assert accepted.status == 200 and accepted.body["role"] == "viewer"
    assert victim("GET", "projects/inv-evil").status == 200 and victim("GET", "invitations").body["items"] == []
    assert evil.invite("inv-victim", "member").status == 201, "a member's role changes at once"


def test_the_default_project_is_the_user_s_own_setting(api: Api, evil: Person) -> None:
    person = Person(api, "inv-chooser", inv_own="member", prey="viewer")
    assert person.project == "default"
    assert person("PATCH", "me", {"default_project": "inv-own"}).status == 200
    assert person.project == "inv-own"
    for hidden in ("inv-evil", "none"):
        refused = person("PATCH", "me", {"default_project": hidden})
        assert refused.status == 400 and refused.problem["field"] == "default_project"
    assert api("POST", "/api/v1/grants", {"user": "inv-chooser", "role": "member", "project": "inv-evil"}).status == 201
    assert person.project == "inv-own"
    assert person("PATCH", "me", {"default_project": None}).status == 200
    assert person.project == "default"


def test_inviting_tells_nothing_about_who_exists(api: Api, evil: Person) -> None:
    Person(api, "inv-exists")
    api("POST", "/api/v1/users", {"name": "inv-service", "kind": "service", "project": "inv-own"})
    bodies = []
    for name in ("inv-exists", "inv-nobody", "administrator", "inv-service"):
        answer = evil.invite(name)
        assert answer.status == 202
        shown = {key: value for key, value in answer.body.items() if key not in ("id", "created_at", "expires_at")}
        bodies.append({**shown, "user_name": "-"})
        assert answer.body["user_name"] == name
    assert all(body == bodies[0] for body in bodies)


def test_an_invitation_ends_with_the_right_of_whoever_invited(api: Api, evil: Person) -> None:
    invited = Person(api, "inv-late")
    former = Person(api, "inv-former", inv_evil="administrator")
    id = former.invite("inv-late").body["id"]
    role = next(grant for grant in api("GET", "/api/v1/grants?user=inv-former").body["items"])
    assert api("DELETE", f"/api/v1/grants/{role['id']}").status == 200
    assert invited("POST", f"invitations/{id}/actions/accept").status == 404
    assert invited("DELETE", f"invitations/{id}").status == 204, "declined"
    assert evil("GET", "invitations").status == 200
