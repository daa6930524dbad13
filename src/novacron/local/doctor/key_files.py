"""Who can read the private keys of this machine's server and agent."""

from __future__ import annotations

import stat
from pathlib import Path

from novacron.local.doctor.finding import Finding, bad, ok, warning

KEYS = (
    "server/ca.key", "server/ca-before.key", "server/server.key", "server/seal.key", "agent/identity/node.key",
    "agent/wireguard.key", "postgres/tls/server.key", "postgres/cluster.join",
)  # fmt: skip
OTHERS = 0o077


async def key_files(state_dir: Path) -> list[Finding]:
    """Look at the modes of all private keys below a state directory."""
    findings, private = [], 0
    for path in (state_dir / name for name in KEYS):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            findings.append(warning("keys", f"{path} can't be checked: {error.strerror}", "run it again as root"))
            continue
        if mode & OTHERS:
            advice = (
                f"chmod 600 {path}; if others may have read it, rotate the keys that depend on it: novacron key list"
            )
            findings.append(bad("keys", f"users other than its owner can access {path}: mode {mode:04o}", advice))
        else:
            private += 1
    return findings or ([ok("keys", f"only their owner can read {private} private keys")] if private else [])
