"""Bring a database to the newest schema: ``python -m novacron.store.schema``, URL in NOVACRON_DATABASE_URL.
An argument is an older version to stop at.

A process of its own, so that SQLAlchemy is loaded only while it is needed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config


def main() -> None:
    url = os.environ["NOVACRON_DATABASE_URL"]
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    command.upgrade(config, sys.argv[1] if len(sys.argv) > 1 else "head")


if __name__ == "__main__":
    main()
