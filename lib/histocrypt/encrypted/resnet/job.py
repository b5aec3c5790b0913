"""``python -m histocrypt.encrypted.resnet.job BUNDLE SESSION WORKERS MESSAGES``: a served session's evaluation.

It runs beside its server, so that a crash of native code on hostile keys costs this job alone, and memory goes back to
the system. It ends with the server: its standard input is a pipe that nothing is written to.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.resnet.request import evaluate_tiles
from histocrypt.errors import InputError
from histocrypt.files import read_json

REFUSED = 2


def _end_with_server() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main(bundle: str, session: str, workers: str, pending: str) -> int:
    """Evaluate messages of a session; print in one sentence for its client why that cannot be."""
    threading.Thread(target=_end_with_server, daemon=True).start()
    folder = Path(session)
    bound = read_json(folder / "request.json")
    try:
        keys, places = folder / "evaluation.keys", (folder / "request", folder / "response")
        evaluate_tiles(load_bundle(bundle), keys, *places, json.loads(pending), bound, workers=int(workers))
    except InputError as error:
        print(error, file=sys.stderr)
        print(error.of_file("keys and messages"))  # and not the server's own file names
        return REFUSED
    return 0


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the watching thread waits for the server
