"""Addresses of storage and files with credentials: what is taken, and in which words the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest
import typer
from hypothesis import strategies

from novacron.backup.addresses import BadAddress
from novacron.backup.errors import RepositoryError
from novacron.backup.places import place_of
from novacron.backup.rest_address import RestAddress, RestCredentials
from novacron.backup.s3_address import S3Address, S3Credentials
from novacron.service_options import AgentOptions

SECRET = "an-example-of-a-secret"
INI = f"[default]\naws_access_key_id = KEY\naws_secret_access_key = {SECRET}%x\n"


def test_an_address_says_where_a_repository_is() -> None:
    plain = S3Address.parse("s3://backups")
    assert plain == S3Address("backups") and str(plain) == "s3://backups"
    assert plain.url() == "https://s3.us-east-1.amazonaws.com"
    full = S3Address.parse(
        "s3://backups/a/b/?endpoint=https://s3.example.net:9000/&region=eu-1&credentials=/etc/s3&ca=/etc/ca&bucket-in=host"
    )
    assert full == S3Address(
        "backups", "a/b", "https://s3.example.net:9000", "eu-1", True, Path("/etc/s3"), Path("/etc/ca")
    )
    assert full.url() == "https://backups.s3.example.net:9000"
    assert str(full / "repo-1") == "s3://backups/a/b/repo-1 at https://s3.example.net:9000"
    assert (plain / "repo-1").prefix == "repo-1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://", "is not a bucket name"),
        ("s3:///prefix", "is not a bucket name"),
        ("s3://Backups", "is not a bucket name"),
        ("s3://a..b", "is not a bucket name"),
        ("s3://backups:9000/x", "is not a bucket name"),
        ("s3://backups/a//b", "prefix"),
        ("s3://backups/../b", "prefix"),
        ("s3://backups/a b", "prefix"),
        ("s3://backups/a%2fb", "prefix"),
        ("s3://backups/a#b", "not an address"),
        ("s3://[backups", "not an address"),
        (f"s3://KEY:{SECRET}@backups/a", "credentials do not belong in an address"),
        ("s3://backups?endpoint", "NAME=VALUE"),
        (f"s3://backups?secret={SECRET}", "option 'secret' of the address is unknown: use endpoint, region"),
        ("s3://backups?region=a&region=b", "twice"),
        ("s3://backups?region=EU%0a", "region"),
        ("s3://backups?endpoint=s3.example.net", "server is not a URL"),
        ("s3://backups?endpoint=ftp://s3.example.net", "server is not a URL"),
        ("s3://backups?endpoint=https://s3.example.net/path", "endpoint has a path"),
        ("s3://backups?endpoint=https://s3.example.net:x", "server is not a URL"),
        (f"s3://backups?endpoint=https://KEY:{SECRET}@s3.example.net", "do not belong in an address"),
        (
            "s3://backups?endpoint=http://s3.example.net",
            "used without TLS: write https://, or allow plain HTTP with plain-",
        ),
        ("s3://backups?endpoint=http://127.0.0.1.example.net", "used without TLS"),
        ("s3://backups?plain-http=maybe", "plain-http='maybe': use no or yes"),
        ("s3://backups?bucket-in=name", "bucket-in='name': use path or host"),
        ("s3://backups?credentials=s3.ini", "credentials: write the absolute path"),
        ("s3://backups?ca=ca.pem", "ca: write the absolute path"),
        ("https://s3.example.net/backups", "write a path, s3://BUCKET"),
        ("s3:backups", None),
    ],
)
def test_what_is_no_address_is_refused_in_words_that_name_the_field(text: str, words: str | None) -> None:
    if words is None:
        assert place_of(text) == Path(text), "a relative path"
        return
    with pytest.raises(BadAddress, match=words) as error:
        place_of(text)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "[::1]:9000", "127.8.8.8"])
def test_without_tls_only_this_host_is_asked(host: str) -> None:
    assert S3Address.parse(f"s3://backups?endpoint=http://{host}").url() == f"http://{host}"


def test_without_tls_others_are_asked_where_that_is_allowed() -> None:
    assert S3Address.parse("s3://backups?endpoint=http://s3.lan&plain-http=yes").url() == "http://s3.lan"


@hypothesis.given(strategies.text(max_size=80))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    try:
        address = S3Address.parse(f"s3://{text}")
    except BadAddress:
        return
    assert ".." not in address.prefix.split("/") and "\n" not in str(address)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (INI, S3Credentials("KEY", f"{SECRET}%x")),
        (f"{INI}aws_session_token = t\n", S3Credentials("KEY", f"{SECRET}%x", "t")),
        (json.dumps({"Version": 1, "AccessKeyId": "KEY", "SecretAccessKey": SECRET}), S3Credentials("KEY", SECRET)),
    ],
)
def test_credentials_are_read_from_files_of_awss_forms(tmp_path: Path, content: str, expected: S3Credentials) -> None:
    file = tmp_path / "s3"
    file.touch(mode=0o600)
    file.write_text(content)
    read = S3Address("backups", credentials_file=file).credentials()
    assert read == expected and SECRET not in repr(read)


@pytest.mark.parametrize(
    "content",
    [
        f"[other]\naws_secret_access_key = {SECRET}\n", f"[default]\naws_secret_access_key = {SECRET}\n", SECRET,
        f'{{"SecretAccessKey": "{SECRET}"', f'{{"SecretAccessKey": "{SECRET}"}}',
    ],
)  # fmt: skip
def test_a_file_without_credentials_is_named_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "s3"
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(BadAddress) as error:
        S3Address("backups", credentials_file=file).credentials()
    assert str(file) in str(error.value) and SECRET not in str(error.value)
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_a_rest_server_is_named_as_restic_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rest"
    file.touch(mode=0o600)
    file.write_text(f"[default]\nusername = node\npassword = {SECRET}\n")
    address = place_of(f"rest:https://backup.example.net:8000/vms/?credentials={file}")
    assert address == RestAddress("https://backup.example.net:8000", "vms", file)
    assert str(address / "repo-1") == "rest:https://backup.example.net:8000/vms/repo-1"
    assert isinstance(address, RestAddress) and address.credentials() == RestCredentials("node", SECRET)
    assert SECRET not in repr(address.credentials())
    monkeypatch.delenv("RESTIC_REST_USERNAME", raising=False)
    assert RestAddress("https://backup.example.net").credentials() is None, "some servers ask for none"
    monkeypatch.setenv("RESTIC_REST_USERNAME", "node")
    monkeypatch.setenv("RESTIC_REST_PASSWORD", SECRET)
    assert RestAddress("https://backup.example.net").credentials() == RestCredentials("node", SECRET)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rest:/srv/backups", "is not a URL: write it like rest:https://HOST"),
        ("rest:s3.example.net", "is not a URL"),
        ("rest:http://backup.example.net/", "used without TLS"),
        (f"rest:https://node:{SECRET}@backup.example.net/", "do not belong in an address"),
        ("rest:https://backup.example.net/a/../b", "path 'a/../b'"),
        ("rest:https://backup.example.net/a%2e", "path"),
        ("rest:https://backup.example.net/?region=x", "option 'region' of the address is unknown"),
    ],
)
def test_what_is_no_rest_server_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(BadAddress, match=words) as error:
        place_of(text)
    assert SECRET not in str(error.value)


def test_credentials_that_all_users_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s3"
    file.write_text(INI)
    file.chmod(0o644)
    with pytest.raises(BadAddress, match="every user of this host can read"):
        S3Address("backups", credentials_file=file).credentials()
    with pytest.raises(BadAddress, match=r"other can't be read: No such file"):
        S3Address("backups", credentials_file=tmp_path / "other").credentials()


def test_credentials_come_from_the_environment_where_no_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(RepositoryError, match="or the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        S3Address("backups").credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert S3Address("backups").credentials() == S3Credentials("KEY", SECRET)


def test_an_agent_takes_a_directory_or_an_address_for_backups(tmp_path: Path) -> None:
    credentials = tmp_path / "s3"
    credentials.touch(mode=0o600)
    credentials.write_text(INI)
    assert AgentOptions(backup_dir=str(tmp_path)).settings().backup_dir == tmp_path
    place = AgentOptions(backup_dir=f"s3://backups/vms?credentials={credentials}").settings().backup_dir
    assert place == S3Address("backups", "vms", credentials_file=credentials)
    assert AgentOptions().settings().backup_dir is None
    for bad, words in (
        (str(credentials), "is no directory"), ("s3://backups?credentials=/no/such/file", "can't be read"),
        (f"s3://backups?credentials={credentials}&ca=/no/such/file", "ca: /no/such/file can't be read"),
        ("relative", "is no directory"),
    ):  # fmt: skip
        with pytest.raises(typer.BadParameter, match=words):
            AgentOptions(backup_dir=bad).settings()
