"""The options of ``novacron server`` and ``novacron agent`` become settings, each by its own name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer

from novacron.api.access.client_address import ProxySettings
from novacron.api.edge.rate_limits import RateSettings
from novacron.model.proxy_header import ProxyHeader
from novacron.model.token import Lifetimes
from novacron.server.settings import ServerSettings
from novacron.service_options import AgentOptions, ServerOptions


def test_a_servers_options_become_its_settings() -> None:
    options = ServerOptions(port=1, link_port=2, writes_per_s=3, redis="redis://x", workers=4, pool=5, leave_s=6)
    settings = options.settings("postgresql://x", Path("/state"), Path("/cli"))
    assert (settings.database_url, settings.state_dir, settings.cli_config) == (
        "postgresql://x", Path("/state"), Path("/cli"),
    )  # fmt: skip
    assert (settings.port, settings.link_port, settings.workers, settings.pool, settings.leave_s) == (1, 2, 4, 5, 6)
    assert settings.rates == RateSettings(writes=3)
    assert settings.redis_url == "redis://x"
    assert settings.proxies == ProxySettings() and settings.lifetimes == Lifetimes(), "defaults are the same"
    options = ServerOptions(
        trusted_proxy=["10.0.0.0/24"], proxy_header=ProxyHeader.FORWARDED,
        session_life=8, session_idle=15, token_life=90, token_idle=30,
    )  # fmt: skip
    settings = options.settings("postgresql://x", Path("/state"), Path("/cli"))
    assert settings.proxies == ProxySettings(("10.0.0.0/24",), ProxyHeader.FORWARDED)
    assert settings.lifetimes == Lifetimes(8 * 3600, 900, 90 * 86_400, 30 * 86_400)
    as_worker = msgspec.json.decode(
        msgspec.json.encode(settings, enc_hook=str), type=ServerSettings, dec_hook=lambda type, text: type(text)
    )
    assert as_worker == settings, "workers get all of it"
    with pytest.raises(typer.BadParameter, match="write it like"):
        ServerOptions(trusted_proxy=["proxy.example.net"]).settings("", Path(), Path())


def test_a_server_archives_its_database_only_if_it_is_told_where() -> None:
    assert ServerOptions().archiver_settings("postgresql://x", Path("/state")) is None
    found = ServerOptions(backup_repository="/b", backup_every=1, backup_days=7).archiver_settings(
        "postgresql://x", Path("/state")
    )
    assert found is not None and (found.url, found.repository) == ("postgresql://x", "/b")
    assert (found.password_file, found.base_every_s, found.keep_days) == ("/state/backup.password", 3600.0, 7)
    with pytest.raises(typer.BadParameter, match="write it like /mnt/backup/novacron"):
        ServerOptions(backup_repository="b").archiver_settings("", Path())


def test_an_agents_options_become_its_settings_in_their_units(tmp_path: Path) -> None:
    options = AgentOptions(
        state_dir=tmp_path, name="host-a", pages_limit=2, keep_images=0.5, reuse="none",
        shared_pool=[f"nfs={tmp_path}"], qemu_loads_memory=True,
    )  # fmt: skip
    settings = options.settings()
    assert (settings.state_dir, settings.images_dir) == (tmp_path / "agent", tmp_path / "images")
    assert (settings.pages_bytes_max, settings.keep_images_s, settings.reuse) == (2 << 20, 1800, frozenset())
    assert settings.shared_pools == {"nfs": tmp_path}
    assert not settings.place_memory and AgentOptions(state_dir=tmp_path).settings().place_memory


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (AgentOptions(reuse="image,dreams"), "dreams: not image"),
        (AgentOptions(pool=["data=/none"]), "is no directory"),
        (AgentOptions(pool=["local=/tmp"]), "pool local"),
    ],
)
def test_an_invalid_option_is_refused_with_its_reason(options: AgentOptions, why: str) -> None:
    with pytest.raises(typer.BadParameter, match=why):
        options.settings()
