"""Log lines: readable text on a terminal, one JSON object a line elsewhere. Prompts are never among them."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from twinshot_server.settings import LogFormat, LogLevel

_SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso"),
]


def configure_logs(level: LogLevel, log_format: LogFormat) -> None:
    """Send every log line of the process, the libraries' too, to stderr in one form."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=_final(as_text))
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # uvicorn tells of starting and stopping at length; twinshot says both itself, in a line each.
    logging.getLogger("uvicorn").setLevel(logging.INFO if level == "debug" else logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _final(as_text: bool) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if as_text:
        return [strip, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
