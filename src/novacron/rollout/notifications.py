"""Tells a webhook, Grafana and the metrics' file how a rollout goes, when the engine has time for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

from novacron.rollout import notices
from novacron.rollout.model import RolloutRecord
from novacron.rollout.notices import NotificationFailed, Receiver
from novacron.rollout.options import RolloutOptions, secret

WAITING_MAX = 100
"""What is to be told and has not been: beyond that, the oldest is forgotten."""


class Notifications:
    """What is to be told, in order. A receiver that is away costs seconds, never a rollout."""

    def __init__(self, options: RolloutOptions) -> None:
        self._webhook = _receiver(options.webhook, "--webhook-secret-file", options.webhook_secret_file,
                                  options.webhook_ca)  # fmt: skip
        self._grafana = _receiver(options.grafana, "--grafana-token-file", options.grafana_token_file,
                                  options.grafana_ca)  # fmt: skip
        self._textfile = options.textfile
        self._waiting: list[tuple[str, Callable[[], None]]] = []

    def webhook(self, rollout: RolloutRecord) -> None:
        """Tell the webhook of the present state, later."""
        if self._webhook is not None:
            to, as_it_is = self._webhook, _copy(rollout)
            self._add("the webhook", lambda: notices.tell_webhook(to, as_it_is))

    def annotate(self, rollout: RolloutRecord, text: str) -> None:
        """Tell Grafana what happened, later."""
        if self._grafana is not None:
            to, as_it_is = self._grafana, _copy(rollout)
            self._add("Grafana", lambda: notices.annotate(to, as_it_is, text))

    def _add(self, whom: str, tell: Callable[[], None]) -> None:
        self._waiting.append((whom, tell))
        del self._waiting[:-WAITING_MAX]

    def flush(self, rollout: RolloutRecord, warn: Callable[[RolloutRecord, str], None]) -> None:
        """Tell everything now. ``warn`` hears of who could not be told."""
        waiting, self._waiting = self._waiting, []
        for whom, tell in waiting:
            try:
                tell()
            except NotificationFailed as error:
                warn(rollout, f"{whom} could not be notified: {error}")

    def measure(self, rollout: RolloutRecord) -> str:
        """Write the metrics' file; return what is wrong with it."""
        if self._textfile is None:
            return ""
        try:
            notices.write_metrics(self._textfile, rollout, time.time())
        except OSError as error:
            return f"textfile: can't write {self._textfile}: {error.strerror}"
        return ""


def _receiver(url: str | None, option: str, file: Path | None, ca: Path | None) -> Receiver | None:
    return None if url is None else Receiver(url, secret(option, file) or "", ca)


def _copy(rollout: RolloutRecord) -> RolloutRecord:
    copied = copy.copy(rollout)
    copied.events = []
    return copied
