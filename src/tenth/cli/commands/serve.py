"""tenth serve."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from tenth.cli.commands._options import Json, Out, Port

PLACE = 50


def serve(
    out: Out,
    /,
    *,
    port: Annotated[Port, Parameter(help="Port on this machine.")] = 8080,
    host: Annotated[
        str, Parameter(help="Address to listen on; one that other machines reach needs a key.")
    ] = "127.0.0.1",
    api_key: Annotated[
        str,
        Parameter(
            env_var="TENTH_API_KEY",
            show_default=False,
            help="Key that every request must bring: Authorization: Bearer KEY.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Let programs talk with a fitted model: an OpenAI-compatible HTTP server.

    Web pages of other sites may not ask it. The model stays within its memory and starts again if it dies.
    """
    from tenth.cli.console import ConsoleReporter, print_json
    from tenth.core.format import megabytes
    from tenth.runtime import bundle
    from tenth.runtime import serve as serving

    with serving.running(bundle.open_bundle(out), port=port, key=api_key, host=host) as server:
        reporter = ConsoleReporter()
        try:
            if as_json:
                print_json({"url": f"{server.url}/v1", "folder": str(out)})
            whom = "for this machine only" if server.local else "for whoever has the key"
            held = megabytes(round(server.engine.limit, -6))
            reporter.say(f"serving on {server.url}/v1, {whom}, in {held} MB at most; Ctrl-C stops")
            server.wait()
        except KeyboardInterrupt:
            reporter.say("stopped")
