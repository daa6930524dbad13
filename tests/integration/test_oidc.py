"""Logins through a provider: a real server, and a provider that signs its tokens or forges them."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import ipaddress
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from lab.platform import open_directory
from lab.ports import free_ports
from lab.replicas import serving
from novacron.client import Client

CLIENT_SECRET = "the client's secret"
COOKIE, STEP = "__Host-novacron-session", "__Host-novacron-login"


class Provider:
    """An OpenID Connect provider of one user, over HTTPS."""

    def __init__(self, directory: Path) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.claims: dict[str, Any] = {"sub": "u-1", "preferred_username": "ann", "groups": ["ops"]}
        self.lie: Callable[[dict[str, Any]], Any] = lambda claims: claims
        self.asked: dict[str, dict[str, str]] = {}
        self.certificate = directory / "provider.pem"
        (port,) = free_ports(1)
        self.issuer = f"https://127.0.0.1:{port}"
        self._write_certificate()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/.well-known/openid-configuration":
                    self._say({
                        "issuer": provider.issuer, "authorization_endpoint": f"{provider.issuer}/authorize",
                        "token_endpoint": f"{provider.issuer}/token", "jwks_uri": f"{provider.issuer}/keys",
                    })  # fmt: skip
                elif self.path == "/keys":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(provider.key.public_key()))
                    self._say({"keys": [{**public, "kid": "k", "use": "sig", "alg": "RS256"}]})

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                identity_token = provider.token({name: values[0] for name, values in form.items()}, self.headers)
                self._say(identity_token, 200 if "id_token" in identity_token else 400)

            def _say(self, body: Any, status: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def authorize(self, url: str) -> tuple[str, str]:
        """Log the user in, as a browser that is sent here would see it; return the code and the state."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert url.startswith(f"{self.issuer}/authorize?") and asked["code_challenge_method"] == "S256"
        code = hashlib.sha256(os.urandom(16)).hexdigest()
        self.asked[code] = asked
        return code, asked["state"]

    def token(self, form: dict[str, str], headers: Any) -> dict[str, Any]:
        asked = self.asked.pop(form["code"], None)
        secret = base64.b64decode(headers["authorization"].split()[1]).decode()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode()
        if asked is None or secret != f"novacron:{CLIENT_SECRET}" or challenge.rstrip("=") != asked["code_challenge"]:
            return {"error": "invalid_grant"}
        now = int(time.time())
        claims = self.lie({
            "iss": self.issuer, "aud": "novacron", "iat": now, "exp": now + 60, "nonce": asked["nonce"], **self.claims,
        })  # fmt: skip
        if isinstance(claims, str):
            return {"id_token": claims}
        return {"id_token": jwt.encode(claims, self.key, "RS256", headers={"kid": "k"})}

    def _write_certificate(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(self.key.public_key()).serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(self.key, hashes.SHA256())
        )  # fmt: skip
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.certificate.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))


class Browser:
    """What a browser does: keeps cookies, and goes where it is sent only when told to."""

    def __init__(self, client: Client) -> None:
        self._url = client.config.url
        self._pool = urllib3.PoolManager(ssl_context=ssl.create_default_context(cadata=client.config.ca))
        self.cookies: dict[str, str] = {}

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        header = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = self._pool.request(
            "GET", self._url + path, headers={"Cookie": header} if header else {}, redirect=False, retries=False
        )
        for text in answer.headers.getlist("set-cookie"):
            name, _, rest = text.partition("=")
            self.cookies[name] = rest.split(";")[0].strip('"')
        return answer


@pytest.fixture(scope="module")
def provided() -> Iterator[tuple[Client, Provider]]:
    """A server whose people a provider vouches for."""
    with open_directory("nvo-") as directory:
        provider = Provider(directory)
        (directory / "secret").write_text(CLIENT_SECRET)
        settings = {
            "issuer": provider.issuer, "client_id": "novacron", "client_secret_file": str(directory / "secret"),
            "ca_file": str(provider.certificate),
            "roles": [{"group": "ops", "role": "operator"}, {"group": "web", "role": "viewer", "project": "default"}],
        }  # fmt: skip
        (directory / "oidc.json").write_text(json.dumps(settings))
        try:
            with serving("--oidc", str(directory / "oidc.json")) as running_server:
                yield running_server.client, provider
        finally:
            provider.close()


def log_in(client: Client, provider: Provider) -> tuple[Browser, urllib3.BaseHTTPResponse]:
    browser = Browser(client)
    sent = browser.get("/api/v1/oidc/login")
    assert sent.status == 302 and STEP in browser.cookies
    code, state = provider.authorize(sent.headers["location"])
    return browser, browser.get(f"/api/v1/oidc/callback?code={code}&state={state}")


def test_a_user_of_the_provider_gets_a_session_and_the_roles_of_their_groups(provided: tuple[Client, Provider]) -> None:
    client, provider = provided
    browser, back = log_in(client, provider)
    assert back.status == 303 and back.headers["location"] == "/" and COOKIE in browser.cookies
    me = json.loads(browser.get("/api/v1/me").data)
    assert (
        me["user"] == "ann"
        and me["everywhere"] == ["console", "metrics", "operate", "read", "write"]
        and me["kind"] == "session"
    )
    provider.claims["groups"] = ["web"]
    browser, _ = log_in(client, provider)
    me = json.loads(browser.get("/api/v1/me").data)
    assert me["everywhere"] == [] and me["projects"] == {"default": ["metrics", "read"]}, "roles follow the groups"
    assert [user["name"] for user in client.list("users") if user["issuer"]] == ["ann"], "it is the same user"
    client.configure_user("ann", disabled=True)
    assert log_in(client, provider)[1].status == 401
    assert browser.get("/api/v1/me").status == 401, "and their sessions have ended"
    client.configure_user("ann", disabled=False)


@pytest.mark.parametrize(
    "lie",
    [
        lambda claims: {**claims, "aud": "another"},
        lambda claims: {**claims, "aud": ["novacron", "another"], "azp": "another"},
        lambda claims: {**claims, "aud": ["novacron", "another"]},
        lambda claims: {**claims, "azp": "another"},
        lambda claims: {**claims, "iss": "https://elsewhere"},
        lambda claims: {**claims, "exp": claims["iat"] - 3600},
        lambda claims: {**claims, "nonce": "another login's"},
        lambda claims: {key: value for key, value in claims.items() if key != "sub"},
        lambda claims: jwt.encode(claims, "x" * 32, "HS256", headers={"kid": "k"}),
        lambda claims: jwt.encode(claims, "", "none"),
        lambda claims: jwt.encode(
            claims, rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256", headers={"kid": "k"}
        ),
    ],
    ids=[
        "audience",
        "party",
        "no party",
        "party of one",
        "issuer",
        "expired",
        "nonce",
        "nobody",
        "shared key",
        "unsigned",
        "another key",
    ],
)
def test_an_invalid_identity_token_opens_no_session(provided: tuple[Client, Provider], lie: Any) -> None:
    client, provider = provided
    provider.lie = lie
    try:
        browser, back = log_in(client, provider)
        assert back.status == 401 and COOKIE not in browser.cookies
    finally:
        provider.lie = lambda claims: claims


def test_a_login_can_only_end_in_the_browser_that_began_it(provided: tuple[Client, Provider]) -> None:
    client, provider = provided
    victim, attacker = Browser(client), Browser(client)
    attacker.get("/api/v1/oidc/login")
    code, state = provider.authorize(attacker.get("/api/v1/oidc/login").headers["location"])
    victim.get("/api/v1/oidc/login")
    assert victim.get(f"/api/v1/oidc/callback?code={code}&state={state}").status == 401
    assert Browser(client).get(f"/api/v1/oidc/callback?code={code}&state={state}").status == 401
    cookie = attacker.cookies[STEP]
    attacker.cookies[STEP] = ("A" if cookie[0] != "A" else "B") + cookie[1:]
    assert attacker.get(f"/api/v1/oidc/callback?code={code}&state={state}").status == 401


def test_a_login_ends_once(provided: tuple[Client, Provider]) -> None:
    client, provider = provided
    browser = Browser(client)
    where = browser.get("/api/v1/oidc/login").headers["location"]
    step = browser.cookies[STEP]
    code, state = provider.authorize(where)
    assert browser.get(f"/api/v1/oidc/callback?code={code}&state={state}").status == 303
    again = Browser(client)
    again.cookies[STEP] = step
    code, _ = provider.authorize(where)
    answer = again.get(f"/api/v1/oidc/callback?code={code}&state={state}")
    assert answer.status == 401 and b"has already ended" in answer.data and COOKIE not in again.cookies
    assert again.get("/api/v1/oidc/callback?code=a&state=%C3%A9").status == 401
