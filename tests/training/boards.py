"""What TensorBoard shows of a folder of event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto import event_pb2


def _events(file: Path) -> Iterator[event_pb2.Event]:
    """Each is framed by its length with a checksum, and by a checksum of its own."""
    data = file.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Values by tag and step; of a training that began anew at a step, what was behind it is gone.

    A step that stands twice is an error.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    events = [event for file in sorted(folder.glob("events.*")) for event in _events(file)]
    for event in sorted(events, key=lambda event: event.wall_time):
        if event.HasField("session_log"):
            for curve in curves.values():
                for step in [step for step in curve if step >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            assert event.step not in curves[value.tag], f"{value.tag}: step {event.step} twice"
            curves[value.tag][event.step] = value.simple_value
    return dict(curves)
