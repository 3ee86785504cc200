"""How a command ends: with its status, whatever the libraries do while Python is torn down."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

FLUSH_FAILED = 120  # Python's own status where its last words cannot be written


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its status.

    Python is not torn down: it would wait for threads with requests under way. And threads of Ray
    2.60 that still ran then crashed jobs now and then that SIGTERM had ended on a busy machine,
    after their last word, so that their status was that of a segmentation fault.
    """
    try:
        status = main()
    except SystemExit as ended:
        status = _status_of(ended.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        status = status or FLUSH_FAILED
    os._exit(status)


def _status_of(code: object) -> int:
    if isinstance(code, int):
        return code
    if code is not None:
        print(code, file=sys.stderr)
    return 0 if code is None else 1
