"""tenth devices."""

from __future__ import annotations

from tenth.cli.commands._options import DEFAULT_SHARE, Json, Share

PLACE = 30


def devices(*, share: Share = None, as_json: Json = False) -> None:
    """List the known devices, and how much memory a share of each is."""
    from tenth.cli.console import print_json
    from tenth.cli.screens import print_devices
    from tenth.devices import catalogue

    known, part = catalogue.all_devices(), catalogue.parse_share(share or DEFAULT_SHARE)
    if as_json:
        rows = [device.model_dump() | {"share": part, "budget": int(device.bytes * part)} for device in known]
        print_json({"devices": rows})
        return
    print_devices(known, part)
