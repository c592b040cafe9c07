# SPDX-License-Identifier: GPL-2.0-or-later
"""A program in the place of nft."""

import json
from pathlib import Path


class FakeNft:
    """A program in the place of nft, first in the PATH."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.record = folder / "record"
        self.loaded()

    def loaded(
        self,
        *objects: str,
        chains: tuple[str, ...] = (),
        rules: tuple[object, ...] = (),
    ) -> None:
        """The table is loaded with these objects; without any it is not there."""
        listing: list[object] = [{"ct helper": {"name": name}} for name in objects]
        listing += [{"chain": {"name": name}} for name in chains]
        listing += [{"rule": {"chain": "x", "expr": each}} for each in rules]
        answer = self._folder / "listing"
        answer.write_text(json.dumps({"nftables": [{"table": {}}, *listing]}))
        absent = "echo Error: No such file or directory >&2; exit 1"
        self.write(
            f'if [ "$1" = -j ]; then {f"cat {answer}" if objects else absent}\n'
            f'else {{ echo "$@"; cat; }} >"{self.record}"; fi'
        )

    def write(self, script: str) -> None:
        file = self._folder / "nft"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
