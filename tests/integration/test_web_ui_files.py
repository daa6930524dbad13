"""How the files of the web UI are served."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from urllib.parse import urlsplit

import pytest

from lab.platform import Platform
from tests.integration import test_web_ui
from tests.integration.conftest import Api
from tests.integration.test_web_ui import PASSWORD

user = test_web_ui.user


def request(site: Platform, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for exactly this path: other clients tidy it up first."""
    config = site.client.config
    where = urlsplit(config.url)
    assert where.hostname is not None
    connection = http.client.HTTPSConnection(
        where.hostname, where.port, context=ssl.create_default_context(cadata=config.ca), timeout=30
    )
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_web_ui_is_served_compressed_for_ever_and_to_its_own_origin_only(site: Platform) -> None:
    status, headers, body = request(site, "/ui/")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    for name in re.findall(rb'(?:src|href)="(/ui/assets/[^"]+)"', body):
        status, headers, packed = request(site, name.decode(), Accept_Encoding="gzip, br")
        assert (status, headers["content-encoding"]) == (200, "br"), name
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert len(packed) < len(request(site, name.decode())[2])
        assert request(site, name.decode(), If_None_Match=headers["etag"])[0] == 304
    assert request(site, "/ui/vms/some-vm")[2] == body, "pages have addresses of their own"
    status, headers, _ = request(site, "/", Accept="text/html,*/*")
    assert (status, headers["location"]) == (303, "/ui/")
    assert request(site, "/")[0] == 404, "programs get no page"
    assert json.loads(request(site, "/ui/settings.json")[2]) == {"oidc": False}


@pytest.mark.parametrize(
    "path",
    ["/ui/assets/", "/ui/assets", "/ui/../pyproject.toml", "/ui/%2e%2e/web_ui.py", "/ui/..%2f..%2fapp.py",
     "/ui/assets/..%5c..%5capp.py", "/ui//etc/passwd", "/ui/%00", "/ui/index.html.br", "/ui/.git/config",
     "/ui/assets/../index.html", "/ui/index.html%0d%0aSet-Cookie:a=b", "/ui/" + "a" * 5000],
)  # fmt: skip
def test_no_path_leads_out_of_the_web_ui(site: Platform, path: str) -> None:
    status, headers, body = request(site, path)
    assert status in (400, 404, 414), path
    assert "set-cookie" not in headers and b"import" not in body


def test_the_web_ui_can_only_be_read(site: Platform) -> None:
    assert request(site, "/ui/", "POST")[0] == 405
    status, headers, body = request(site, "/ui/", "HEAD")
    assert status == 200 and body == b"" and int(headers["content-length"]) > 0


def test_a_page_learns_its_value_for_changes_again_after_a_reload(site: Platform, user: str, api: Api) -> None:
    done = api("POST", "/api/v1/login", {"user": user, "password": PASSWORD}, token=None)
    cookie = next(part for part in done.headers.getlist("set-cookie") if "-session=" in part).split(";")[0]
    shown = api("GET", "/api/v1/me", token=None, Cookie=cookie)
    assert shown.body["csrf"] == done.body["csrf"] and shown.headers["cache-control"] == "no-store"
    assert api("GET", "/api/v1/me").body["csrf"] is None, "a token has none"
    assert api("POST", "/api/v1/logout", token=None, Cookie=cookie, X_CSRF_Token=done.body["csrf"]).status == 204
