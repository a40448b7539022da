"""A clock that goes only when it is told to: rulers of time are tested with it on however busy a machine."""

from types import SimpleNamespace

import pytest

from sinq.common import timing


class FakeClock:
    """What `time` offers of one."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        """Let time pass, at once."""
        self.now += seconds

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> "FakeClock":
        """A clock that `sinq.common.timing` reads until the test ends."""
        fake = cls()
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: fake.now))
        return fake
