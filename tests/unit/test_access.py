"""Who may do what, and how much a project may have."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.access import IMPLIED, RIGHTS, Access, Right, Role, access
from novacron.model.errors import QuotaExceeded
from novacron.model.oidc import GroupRole, Provider, roles_of, user_name
from novacron.model.project import Quota, Usage, check
from novacron.model.token import csrf_of

projects = st.sampled_from([None, "a", "b"])
roles = st.sampled_from(list(Role))
grants = st.lists(st.tuples(projects, roles), max_size=5)


def test_each_role_has_the_rights_of_the_lower_role_and_more() -> None:
    order = [RIGHTS[role] for role in Role]
    assert all(less < more for less, more in itertools.pairwise(order))


@given(grants, st.sampled_from(list(Right)), projects)
def test_nobody_has_more_rights_than_their_roles(
    given_roles: list[tuple[str | None, Role]], right: Right, where: str | None
) -> None:
    allowed = any(right in RIGHTS[role] and project in (None, where) for project, role in given_roles)
    assert access(given_roles).allows(right, where) is allowed


@given(
    grants, st.none() | st.frozensets(st.sampled_from(list(Right))), projects, st.sampled_from(list(Right)), projects
)
def test_a_token_never_has_more_rights_than_its_user(
    given_roles: list[tuple[str | None, Role]], scopes: frozenset[Right] | None, good_in: str | None, right: Right,
    where: str | None,
) -> None:  # fmt: skip
    whole = access(given_roles)
    cut = whole.within(scopes, good_in)
    if cut.allows(right, where):
        assert whole.allows(right, where)
        assert scopes is None or right in scopes or any(IMPLIED.get(scope) is right for scope in scopes)
        assert good_in in (None, where)


def test_what_guests_show_and_metrics_are_rights_of_their_own() -> None:
    everywhere = access([(None, Role.VIEWER)])
    assert everywhere.allows(Right.READ, "a") and not everywhere.allows(Right.CONSOLE, "a")
    assert access([("a", Role.MEMBER)]).allows(Right.CONSOLE, "a")
    scraper = everywhere.within(frozenset({Right.METRICS}), None)
    assert scraper.allows(Right.METRICS, None) and not scraper.allows(Right.READ, None)


def test_a_user_without_a_role_has_no_rights() -> None:
    assert not any(Access().allows(right, where) for right in Right for where in (None, "a"))


def test_a_quota_stops_growth_and_leaves_existing_use_alone() -> None:
    quota = Quota(vms=2, memory_mib=1024)
    check("web", quota, Usage(vms=1), Usage(vms=2, vcpus=900))
    with pytest.raises(QuotaExceeded, match="may have 2 VMs, and would have 3") as caught:
        check("web", quota, Usage(vms=2), Usage(vms=3))
    assert caught.value.field == "vms"
    check("web", quota, Usage(vms=9), Usage(vms=8))
    check("web", quota, Usage(vms=9), Usage(vms=9, networks=1))


def test_groups_of_an_identity_provider_grant_roles() -> None:
    provider = Provider(
        "https://idp", "novacron", "/secret",
        roles=(
            GroupRole("ops", Role.OPERATOR), GroupRole("web", Role.VIEWER, "web"),
            GroupRole("leads", Role.MEMBER, "web"),
        ),
    )  # fmt: skip
    assert roles_of(provider, {"groups": ["web", "leads", "x"]}) == {"web": Role.MEMBER}
    assert roles_of(provider, {"groups": ["ops"]}) == {None: Role.OPERATOR}
    assert roles_of(provider, {"groups": "ops"}) == roles_of(provider, {}) == {}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("ann@example.org", "ann@example.org"),
        ("Ann Smith;--", "Ann-Smith"),
        ("../../x", "x"),
        ("", "user"),
        ("\u202e", "user"),
    ],
)
def test_an_external_user_name_becomes_a_valid_name(said: str, name: str) -> None:
    assert user_name({"preferred_username": said}, "preferred_username") == name


def test_the_csrf_token_reveals_nothing_about_the_session() -> None:
    assert csrf_of("secret") != csrf_of("other") and "secret" not in csrf_of("secret")
