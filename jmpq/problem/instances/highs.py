"""HiGHS, without its lines on standard output."""

import contextlib
import functools
import os


@functools.cache
def quiet_highs() -> None:
    """Make the first object of HiGHS of this process, at which it prints who it is.

    No option sets that off, and later objects print nothing. Standard output leads nowhere for
    that moment; where a program has none, there is nothing to do.
    """
    import highspy

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            output = os.dup(1)
            stack.callback(os.close, output)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, 1)
            stack.callback(os.dup2, output, 1)
        highspy.Highs()
