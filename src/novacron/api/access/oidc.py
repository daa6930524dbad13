"""Logins through an OpenID Connect provider: the authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636).

What this server has to remember between the two steps is in a cookie that only it can make, good for a few minutes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import msgspec
import urllib3

from novacron.key_ring import Secrets
from novacron.model import limits
from novacron.model.errors import Unauthenticated, Unavailable
from novacron.model.oidc import Provider
from novacron.model.token import same_secret
from novacron.store import logins
from novacron.store.database import Database

TIMEOUT_S = 10.0
DISCOVERY_S = 3600.0
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
LEEWAY_S = 30


class LoginStep(msgspec.Struct, frozen=True):
    """The state of a login between its two steps."""

    state: str
    nonce: str
    verifier: str
    expires_at_s: float


class Oidc:
    """A provider, as this server talks to it. ``keys`` sign what callers carry."""

    def __init__(self, provider: Provider, redirect_url: str, keys: Secrets, database: Database) -> None:
        self.provider = provider
        self._redirect_url = redirect_url
        self._sealing_keys, self._database = keys, database
        self._secret = Path(provider.client_secret_file).read_text().strip()
        context = ssl.create_default_context(cafile=provider.ca_file)
        self._http = urllib3.PoolManager(ssl_context=context, timeout=TIMEOUT_S, retries=False, maxsize=4)
        self._context = context
        self._configuration: dict[str, Any] = {}
        self._configuration_until_s = 0.0
        self._keys: jwt.PyJWKClient | None = None

    async def begin(self) -> tuple[str, str]:
        """Return the URL to redirect the browser to, and the cookie that it returns with. Raises Unavailable."""
        configuration = await asyncio.to_thread(self._discover)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        step = LoginStep(state, nonce, verifier, time.time() + limits.LOGIN_STEP_S_MAX)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(step.verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code", "client_id": self.provider.client_id, "redirect_uri": self._redirect_url,
            "scope": " ".join(self.provider.scopes), "state": step.state, "nonce": step.nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        return f"{configuration['authorization_endpoint']}?{urlencode(query)}", self._sealed(step)

    async def end(self, cookie: str, state: str, code: str) -> dict[str, Any]:
        """Return the provider's verified claims. Raises Unauthenticated, Unavailable."""
        step = self._opened(cookie)
        if step is None or step.expires_at_s < time.time() or not same_secret(step.state, state):
            raise Unauthenticated(
                "this login was not started in this browser, or it took too long", hint="log in again"
            )
        if not await self._first_use(step):
            raise Unauthenticated("this login has already ended", hint="log in again")
        return await asyncio.to_thread(self._claims, step, code)

    async def _first_use(self, step: LoginStep) -> bool:
        """Note that a login ends, and say whether it is for the first time, on whichever server."""
        async with self._database.connection() as connection:
            return await logins.end(connection, step.state, step.expires_at_s)

    def _sealed(self, step: LoginStep) -> str:
        body = base64.urlsafe_b64encode(msgspec.json.encode(step))
        return f"{body.decode()}.{_seal(self._sealing_keys()[0], body)}"

    def _opened(self, cookie: str) -> LoginStep | None:
        body, _, seal = cookie.rpartition(".")
        if not any(same_secret(_seal(key, body.encode()), seal) for key in self._sealing_keys()):
            return None
        return msgspec.json.decode(base64.urlsafe_b64decode(body), type=LoginStep)

    def _ask(self, url: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the provider's answer; a form is posted, with the client's password."""
        try:
            if form is None:
                answer = self._http.request("GET", url, redirect=False)
            else:
                headers = urllib3.make_headers(basic_auth=f"{self.provider.client_id}:{self._secret}")
                answer = self._http.request(
                    "POST", url, redirect=False, encode_multipart=False, headers=headers, fields=form
                )
            body = json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unavailable(f"{self.provider.issuer} does not answer: {type(error).__name__}") from error
        if answer.status != 200 or not isinstance(body, dict):
            reason = body.get("error", "") if isinstance(body, dict) else ""
            raise Unauthenticated(f"{self.provider.issuer} refuses the login: {answer.status} {reason}"[:200])
        return body

    def _discover(self) -> dict[str, Any]:
        if time.monotonic() > self._configuration_until_s:
            configuration = self._ask(self.provider.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if configuration.get("issuer") != self.provider.issuer:
                raise Unavailable(f"{self.provider.issuer} says that it is {configuration.get('issuer')!r}")
            self._keys = jwt.PyJWKClient(configuration["jwks_uri"], ssl_context=self._context, timeout=TIMEOUT_S)
            self._configuration, self._configuration_until_s = configuration, time.monotonic() + DISCOVERY_S
        return self._configuration

    def _claims(self, step: LoginStep, code: str) -> dict[str, Any]:
        endpoints = self._discover()
        tokens = self._ask(
            endpoints["token_endpoint"],
            form={
                "grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_url,
                "code_verifier": step.verifier,
            },
        )  # fmt: skip
        assert self._keys is not None
        try:
            token = str(tokens["id_token"])
            claims: dict[str, Any] = jwt.decode(
                token, self._keys.get_signing_key_from_jwt(token).key, algorithms=list(ALGORITHMS),
                audience=self.provider.client_id, issuer=self.provider.issuer, leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (jwt.PyJWTError, KeyError) as error:
            raise Unauthenticated(f"the token from {self.provider.issuer} is invalid: {error}") from error
        _check_party(claims, self.provider.client_id)
        if not same_secret(str(claims.get("nonce", "")), step.nonce):
            raise Unauthenticated("the provider's answer belongs to another login", hint="log in again")
        return claims


def _seal(key: bytes, body: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _check_party(claims: dict[str, Any], client_id: str) -> None:
    """Raise Unauthenticated for a token that was made for another client (OpenID Connect Core 1.0, 3.1.3.7)."""
    party, audience = claims.get("azp"), claims["aud"]
    if (party is not None and party != client_id) or (party is None and isinstance(audience, list) and audience[1:]):
        raise Unauthenticated("the provider's token was made for another client", hint="log in again")
