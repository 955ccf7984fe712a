"""Event files for TensorBoard: the summary of a sweep, for the views SCALARS and HPARAMS.

    tensorboard --logdir=RUN_DIRECTORY/tensorboard

tensorboardX's `SummaryWriter` writes in a thread of its own. On a full disk that thread dies, and the next events wait
for it forever. This module uses the parts of tensorboardX without the thread, so a full disk is an OSError at once.
"""

import math
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

MAX_SESSIONS = 500  # trials in HPARAMS: TensorBoard wants a folder with a file for each, and reads all of them


class Events:
    """A new event file in a directory, which is made if missing; use as a context manager.

    dataset: the name in the file, PHANTOM for synthetic images. OSError if it cannot be written.
    """

    def __init__(self, directory: pathlib.Path, dataset: str):
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # The name has to have 'tfevents' in it, and to sort by time where a resumed run adds another file.
        name = f'events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}'
        self._writer = RecordWriter(str(directory / name))
        self._writer.write(Event(wall_time=now, file_version='brain.Event:2').SerializeToString())
        self.add(summary.text('dataset', dataset))

    def add(self, what: Summary, step: int = 0) -> None:
        """Adds a summary, made by a function of tensorboardX.summary."""
        self._writer.write(Event(wall_time=time.time(), step=step, summary=what).SerializeToString())

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each of several curves."""
        self.add(Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]), step)

    def flush(self) -> None:
        """Returns when all that was added is on the disk."""
        self._writer.flush()

    def __enter__(self) -> 'Events':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


class SweepEvents(Events):
    """The summary of a sweep: a point for each finished trial, and what each of the first MAX_SESSIONS had set.

    Every process that starts makes it anew from the DONE trials. So it is complete and has every trial once, whatever
    was killed. Scalars: each score, and its mean so far under mean_so_far/; step n is the n-th finished trial. HPARAMS:
    a session for each trial, with its swept values and its scores.
    """

    def __init__(self, directory: pathlib.Path, dataset: str, swept: Mapping[str, Mapping[str, Any]]):
        """directory: of these files only; emptied. swept: trial_id -> swept key -> value, of all trials."""
        if directory.exists():
            shutil.rmtree(directory)
        super().__init__(directory, dataset)
        if len(swept) > MAX_SESSIONS:
            note = f'HPARAMS has the first {MAX_SESSIONS} finished trials of {len(swept)}; results.csv has all.'
            self.add(summary.text('note', note))
        self._directory, self._dataset, self._swept = directory, dataset, swept
        self._trials = 0
        self._sums: dict[str, tuple[float, int]] = {}  # score -> sum, trials that have it

    def add_trial(self, trial_id: str, scores: Mapping[str, float | None]) -> None:
        """Adds a finished trial, once. scores: those that are None or nan (an AUC of one class) are left out."""
        scores = {name: value for name, value in scores.items() if value is not None and not math.isnan(value)}
        self._trials += 1
        means = {}
        for name, value in scores.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
            means[f'mean_so_far/{name}'] = (total + value) / (count + 1)
        self.add_scalars({**scores, **means}, self._trials)
        if self._trials <= MAX_SESSIONS:
            self._write_session(trial_id, scores)

    def _write_session(self, trial_id: str, scores: Mapping[str, float]) -> None:
        values = {key: ', '.join(map(str, value)) if isinstance(value, tuple) else value
                  for key, value in self._swept[trial_id].items()}  # fmt: skip
        # Names of their own, so that SCALARS does not draw the single points of all trials into the curves above.
        finals = {f'trial/{name}': value for name, value in scores.items()}
        with Events(self._directory / trial_id[:12], self._dataset) as session:
            for part in summary.hparams({**values, 'dataset': self._dataset}, finals):
                session.add(part)
            session.add_scalars(finals, 0)
