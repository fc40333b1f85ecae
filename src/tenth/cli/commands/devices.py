"""tenth devices."""

from __future__ import annotations

import json

from tenth.cli.commands._options import DEFAULT_SHARE, Json, Share

PLACE = 30


def devices(*, share: Share = None, as_json: Json = False) -> None:
    """List the known devices, and how much memory a share of each is."""
    from tenth.cli.console import ConsoleReporter
    from tenth.devices import catalogue

    part, known = catalogue.parse_share(share or DEFAULT_SHARE), catalogue.known()
    if as_json:
        rows = [device.model_dump() | {"share": part, "budget": int(device.bytes * part)} for device in known]
        print(json.dumps({"devices": rows}))
        return
    ConsoleReporter.devices(known, part)
