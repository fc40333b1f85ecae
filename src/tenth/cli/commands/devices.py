"""tenth devices."""

from __future__ import annotations

import json

from tenth.cli.commands._options import Json, Share

PLACE = 30


def devices(share: Share = None, as_json: Json = False) -> None:
    """List the known devices and what a share of each is."""
    from tenth.cli.console import ConsoleReporter
    from tenth.devices import catalogue as known_devices

    part = known_devices.parse_share(share or "10%")
    found = known_devices.known()
    if as_json:
        rows = [device.model_dump() | {"share": part, "budget": int(device.bytes * part)} for device in found]
        print(json.dumps({"devices": rows}))
        return
    ConsoleReporter.devices(found, part)
