"""MindSpore Transformers' log on the terminal: on stderr, since results go to stdout."""

import logging

from mindformers.tools.logger import get_logger

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.log import is_silent, is_verbose, write_line


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


_TERMINAL = _Terminal()


def quieten_upstream_log() -> None:
    """Show its errors, with --verbose all that it writes; its files (./output/log) get all of it.

    Among its warnings are tables of keys that it does not know in a config that we made of them.

    Raises:
        ConfigError: it cannot write its files.
    """
    try:
        log = get_logger()
    except OSError as problem:
        raise ConfigError(
            f"MindSpore Transformers cannot keep its log in {problem.filename} "
            f"({problem.strerror}): give another place with --output_dir, or by LOG_MF_PATH."
        ) from None
    for handler in log.handlers[:]:
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            _TERMINAL.setFormatter(handler.formatter)
            log.removeHandler(handler)
    _TERMINAL.setLevel(logging.INFO if is_verbose() and not is_silent() else logging.ERROR)
    log.addHandler(_TERMINAL)  # once, however often it is asked for
