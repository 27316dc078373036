"""Whether the step of now updates what losses read out."""

import contextlib
import contextvars

_DUE = contextvars.ContextVar("readouts_are_due", default=True)


@contextlib.contextmanager
def readout_scope(due):
    """Within this scope, `DistillationLoss.read_out` updates metrics, or does not."""
    token = _DUE.set(due)
    try:
        yield
    finally:
        _DUE.reset(token)


def are_due():
    """Returns whether the scope says so; outside of one, they are."""
    return _DUE.get()
