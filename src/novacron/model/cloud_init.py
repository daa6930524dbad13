"""The data that cloud-init applies at a guest's first boot."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import limits
from novacron.model.encryption import SealedText
from novacron.model.errors import InvalidInput

HOSTNAME = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,7}\Z"
SSH_KEY = re.compile(
    r"^(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" [A-Za-z0-9+/]{16,8000}={0,2}( [^\r\n]{0,200})?\Z"
)
USER_DATA_BEGINS = (
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#upstart-job",
    "Content-Type:",
)


Hostname = Annotated[str, Meta(pattern=HOSTNAME, max_length=253)]
SshKeys = Annotated[tuple[str, ...], Meta(max_length=limits.SSH_KEYS_MAX)]
UserData = Annotated[str, Meta(max_length=limits.USER_DATA_BYTES_MAX)]
Nameservers = Annotated[tuple[str, ...], Meta(max_length=limits.NAMESERVERS_MAX)]
S = TypeVar("S", bound="Seed")


class Seed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First-boot data for cloud-init (NoCloud). An omitted field leaves the image's own setting."""

    hostname: Hostname | None = None
    """By default the VM's name."""
    ssh_keys: SshKeys = ()
    user_data: UserData = ""
    """In a format of cloud-init: ``#cloud-config`` and YAML, or a script. The API never shows it again."""
    gateway: str | None = None
    """IPv4 address of the default gateway, if the VM has a static address."""
    nameservers: Nameservers = ()


class StoredSeed(Seed, frozen=True):
    """What is stored of it."""

    generation: int = 0
    """How often it has changed: for each, the guest takes itself for a new instance, and applies it."""


class SealedSeed(StoredSeed, frozen=True, omit_defaults=True):
    """As the database has it: the user data of a VM that is encrypted at rest are ``sealed``."""

    sealed: SealedText | None = None

    def opened(self, user_data: str) -> StoredSeed:
        """Return what the VM's node is told. ``user_data``: what was sealed."""
        own = {field: getattr(self, field) for field in StoredSeed.__struct_fields__}
        return StoredSeed(**{**own, "user_data": user_data or self.user_data})


class SeedChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of it; what is left out stays."""

    hostname: Hostname | UnsetType | None = UNSET
    ssh_keys: SshKeys | UnsetType = UNSET
    user_data: UserData | UnsetType = UNSET
    gateway: str | UnsetType | None = UNSET
    nameservers: Nameservers | UnsetType = UNSET

    def of(self, seed: S) -> S:
        """Return a seed with the changes."""
        given = {field: value for field in self.__struct_fields__ if (value := getattr(self, field)) is not UNSET}
        return msgspec.structs.replace(seed, **given)


class SealedSeedChanges(SeedChanges):
    """Changes whose user data were sealed, or removed."""

    sealed: SealedText | None = None


def check_seed(seed: S) -> S:
    """Return the seed with its addresses in canonical form, or raise InvalidInput that names the field."""
    for number, key in enumerate(seed.ssh_keys):
        if not SSH_KEY.match(key):
            raise InvalidInput(
                f"key {number + 1} is not a public SSH key",
                field="cloud_init.ssh_keys",
                hint="give the line from a .pub file",
            )
    if seed.user_data and not seed.user_data.startswith(USER_DATA_BEGINS):
        raise InvalidInput(
            "the user data begins with nothing that cloud-init knows",
            field="cloud_init.user_data",
            hint="begin it with #cloud-config, or #! for a script",
        )
    if len(seed.user_data.encode()) > limits.USER_DATA_BYTES_MAX:
        raise InvalidInput(f"it has more than {limits.USER_DATA_BYTES_MAX} bytes", field="cloud_init.user_data")
    return msgspec.structs.replace(
        seed,
        gateway=_address(seed.gateway, "gateway") if seed.gateway else seed.gateway,
        nameservers=tuple(_address(address, "nameservers") for address in seed.nameservers),
    )


def _address(text: str, field: str) -> str:
    """Return an address in canonical form. Raises InvalidInput, also for one with a zone, which may be any text."""
    try:
        if "%" in text:
            raise ValueError
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidInput(f"{text[:60]!r} is not an IP address", field=f"cloud_init.{field}") from None
