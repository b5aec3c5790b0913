"""Snakemake's log as `histocrypt.workflow.progress` reads it: a line of JSON for each event, on standard error.

Snakemake finds the plugins of its logger by the name of their package, so this one stands beside ``histocrypt``.
"""

from __future__ import annotations

import json
import sys
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

MARK = "\x01"
"""Begins each line, which tells it from what programs print."""


class LogHandler(LogHandlerBase):
    """Writes events; each has the ``text`` that Snakemake would have printed."""

    writes_to_stream = True
    writes_to_file = has_filter = has_formatter = needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Write one event."""
        text = self.format(record)
        event = getattr(record, "event", None)
        said = {"event": event and str(event), "text": "" if text == "None" else text, **_facts(event, record)}
        print(MARK + json.dumps(said, default=str), file=sys.stderr, flush=True)


def _facts(event: LogEvent | None, record: LogRecord) -> dict[str, Any]:
    if event == LogEvent.RUN_INFO:
        return {"stats": record.stats}
    if event == LogEvent.PROGRESS:
        return {"done": record.done, "total": record.total}
    if event == LogEvent.JOB_INFO:
        return {"job": record.jobid, "log": list(record.log), "resources": dict(record.resources.items())}
    if event == LogEvent.JOB_FINISHED:
        return {"job": record.job_id}
    if event == LogEvent.JOB_ERROR:
        return {"job": record.jobid, "log": list(record.log), "message": record.rule_msg or ""}
    return {}
