"""Change an SAE while it is trained, as no callback can: it gets a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

from saelearn.sae import SAE
from saelearn.train import rows
from saelearn.train.autograd import Seen
from saelearn.train.state import Record, State


@contextlib.contextmanager
def meddling(change: Callable[[Record, SAE], None]) -> Iterator[None]:
    """Hand each new record and the SAE in training to `change`, in all trainings meanwhile."""

    class Meddled(State):
        def record(self, seen: Seen) -> Record:
            record = super().record(seen)
            change(record, self.sae)
            return record

    with mock.patch.object(rows, "State", Meddled):
        yield
