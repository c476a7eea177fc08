"""Logs as JSON, a line per event. What was asked and answered is not in them unless the settings say so."""

import datetime
import json
import logging
import sys
from typing import Any, TextIO

_logger = logging.getLogger("nanochat.serving")


def log(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Log an event and its fields."""
    _logger.log(level, event, extra={"fields": fields}, exc_info=error)


def log_to(stream: TextIO = sys.stderr) -> None:
    """Write the events of this server, and what uvicorn has to say, to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines())
    for name, level in (("nanochat.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": now.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
