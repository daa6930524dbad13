"""Who is told of a rollout: a webhook, Grafana, and whoever reads the metrics. None of them holds it up for long."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import urllib3

from novacron.rollout.model import ENDED, RolloutRecord, RolloutState
from novacron.telemetry.declared import ROLLOUTS

SEND_S_MAX, SENT_TIMES, BACK_OFF_S = 3.0, 3, 0.5
SIGNATURE, TIMESTAMP = "X-NovaCron-Signature", "X-NovaCron-Timestamp"
METRICS_MODE = 0o644
"""Whoever collects metrics runs as another user."""


class Receiver(NamedTuple):
    """Who is told, and what proves who tells."""

    url: str
    secret: str
    ca: Path | None


class NotificationFailed(Exception):
    """A receiver could not be told: says why."""


def signature(secret: str, stamp: str, body: bytes) -> str:
    """Return what proves that whoever knows the secret sent this, at this time (HMAC-SHA-256)."""
    return "sha256=" + hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def summary(rollout: RolloutRecord) -> dict[str, object]:
    """Return what a webhook is told of a rollout."""
    return {
        "rollout": rollout.number, "strategy": rollout.strategy, "version": rollout.version,
        "version_before": rollout.version_before, "state": rollout.state, "step": rollout.step,
        "reason": rollout.reason, "by": rollout.by, "went_back_s": rollout.went_back_s,
    }  # fmt: skip


def tell_webhook(to: Receiver, rollout: RolloutRecord) -> None:
    """Tell of a rollout's state. Raises NotificationFailed."""
    body, stamp = json.dumps(summary(rollout)).encode(), str(int(time.time()))
    headers = {"Content-Type": "application/json", TIMESTAMP: stamp, SIGNATURE: signature(to.secret, stamp, body)}
    _post(to, to.url, headers, body)


def annotate(to: Receiver, rollout: RolloutRecord, text: str) -> None:
    """Add an annotation to Grafana (HTTP API, POST /api/annotations). Raises NotificationFailed."""
    body = json.dumps({
        "time": int(time.time() * 1000),
        "tags": ["novacron", "rollout", rollout.strategy, rollout.state],
        "text": f"rollout {rollout.number} to {rollout.version}: {text}",
    }).encode()  # fmt: skip
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {to.secret}"}
    _post(to, f"{to.url.rstrip('/')}/api/annotations", headers, body)


def _post(to: Receiver, url: str, headers: Mapping[str, str], body: bytes) -> None:
    """Send something, a few times if need be. Raises NotificationFailed, without what is secret."""
    said = ""
    with urllib3.PoolManager(ca_certs=None if to.ca is None else str(to.ca)) as pool:
        for attempt in range(SENT_TIMES):
            if attempt:
                time.sleep(BACK_OFF_S * 2**attempt)
            try:
                answer = pool.request(
                    "POST", url, body=body, headers=headers, retries=False, redirect=False, timeout=SEND_S_MAX
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                said = f"no answer: {type(error).__name__}"
                continue
            if 200 <= answer.status < 300:
                return
            said = f"answered {answer.status}"
            if answer.status < 500 and answer.status != 429:
                break  # it would say the same again
    raise NotificationFailed(said)


def metrics(rollout: RolloutRecord, now_s: float) -> str:
    """Return the metrics of the newest rollout, as Prometheus reads them from a file."""
    ended = {f'state="{state}"': rollout.ended_s if state is rollout.state else 0.0 for state in sorted(ENDED)}
    values = {
        "novacron_rollout_running": {"": float(not rollout.ended)},
        "novacron_rollout_state": {f'state="{state}"': float(state is rollout.state) for state in RolloutState},
        "novacron_rollout_number": {"": float(rollout.number)},
        "novacron_rollout_progress_timestamp_seconds": {"": now_s},
        "novacron_rollout_ended_timestamp_seconds": ended,
        "novacron_rollout_went_back_seconds": {"": rollout.went_back_s},
    }
    lines = []
    for family in ROLLOUTS:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in values[family.name].items():
            lines.append(f"{family.name}{{{labels}}} {value}" if labels else f"{family.name} {value}")
    return "\n".join(lines) + "\n"


def write_metrics(file: Path, rollout: RolloutRecord, now_s: float) -> None:
    """Write the metrics for node_exporter's textfile collector. Raises OSError."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(metrics(rollout, now_s))
    fresh.chmod(METRICS_MODE)
    fresh.replace(file)
