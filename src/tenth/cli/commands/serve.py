"""tenth serve."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Json, Out, Port

PLACE = 50


def serve(
    out: Out,
    /,
    *,
    port: Annotated[Port, Parameter(help="Port on this machine.")] = 8080,
    as_json: Json = False,
) -> None:
    """Let programs on this machine talk with a fitted model: an OpenAI-compatible HTTP server."""
    from tenth.cli.console import ConsoleReporter
    from tenth.runtime import bundle
    from tenth.runtime import serve as serving

    with serving.running(bundle.open_bundle(out), port=port) as server:
        try:
            if as_json:
                print(json.dumps({"url": f"{server.url}/v1", "folder": str(out)}), flush=True)
            ConsoleReporter().say(f"serving on {server.url}/v1, for this machine only; Ctrl-C stops")
            server.wait()
        except KeyboardInterrupt:
            ConsoleReporter().say("stopped")
