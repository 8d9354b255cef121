"""Writes tests/data/events.tfevents by TensorBoard's own protocol buffers and record writer, and reads it back by its own loader.

    python compiler/command/tests/reference/events.py
"""

import pathlib

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "events.tfevents"


def scalars(step, time, values):
    summary = summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
    )
    return event_pb2.Event(wall_time=time, step=step, summary=summary)


def main():
    values = [("loss", 2.5), ("lr", 0.001), ("eval_loss", float("inf"))]
    events = [
        event_pb2.Event(wall_time=1_700_000_000.25, file_version="brain.Event:2"),
        event_pb2.Event(
            wall_time=1_700_000_000.25, step=7, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        ),
        scalars(7, 1_700_000_001.5, values),
        scalars(300, 1_700_000_002.5, values[:1]),
    ]
    with open(DATA, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    read = list(EventFileLoader(str(DATA)).Load())
    assert [event.step for event in read] == [0, 7, 7, 300], read
    print(read[2])


if __name__ == "__main__":
    main()
