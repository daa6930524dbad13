"""``script/package``: builds what is released."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.debian.build import BuildFailed, build
from deploy.debian.manifest import Debian


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/package", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("dist"), help="where to put it (default: dist)")
    parser.add_argument("--debian", action="append", choices=list(Debian), help="only for this release of Debian")
    parser.add_argument("--revision", type=int, default=1, help="of the Debian packages of one version (default: 1)")
    arguments = parser.parse_args()
    debians = [Debian(number) for number in arguments.debian or Debian]
    try:
        for path in build(arguments.directory, debians, arguments.revision):
            print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
    except BuildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
