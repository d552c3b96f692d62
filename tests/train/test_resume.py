"""A killed run goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import optimiser_config, runtime_config, train

from cilseg.errors import ArtifactError


def iterations_of(run_dir):
    return [json.loads(line)["iteration"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def run_until_killed(kind: str, scenes: Path, run_dir: Path, *, workers: int, at: int) -> None:
    """Train in another process and kill it (SIGKILL) when its log has ``at`` lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, tiny_training.__file__, kind, str(scenes), str(run_dir), str(workers), str(at)]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    log = run_dir / "log.jsonl"
    deadline = time.monotonic() + 240
    try:
        while not log.is_file() or log.read_bytes().count(b"\n") < at:
            assert child.poll() is None, child.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline, "the run is stuck"
            time.sleep(0.05)
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # its own session: the run and its loader workers
        child.wait()
        child.stderr.close()


@pytest.mark.parametrize(("kind", "workers", "at"), [("base", 0, 6), ("wilson", 1, 7)])
def test_a_killed_run_continues_bit_for_bit(scenes, tmp_path, kind, workers, at):
    whole = train(kind, scenes, tmp_path / "whole")
    run_until_killed(kind, scenes, tmp_path / "killed", workers=workers, at=at)
    assert iterations_of(tmp_path / "killed") == list(range(1, at + 1))
    assert not list((tmp_path / "killed").glob("*.tmp"))

    ticks = []
    resumed = train(
        kind,
        scenes,
        tmp_path / "killed",
        resume=True,
        runtime=runtime_config(workers=workers),
        on_tick=lambda tick: ticks.append(tick.iteration),
    )
    assert ticks == list(range(at, 13))  # killed between the log line and the checkpoint: that iteration is repeated
    assert iterations_of(tmp_path / "killed") == iterations_of(tmp_path / "whole") == list(range(1, 13))
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_a_finished_run_is_not_trained_again(scenes, tmp_path):
    first = train("base", scenes, tmp_path, config=optimiser_config(epochs=1))
    ticks = []
    again = train("base", scenes, tmp_path, config=optimiser_config(epochs=1), resume=True, on_tick=ticks.append)
    assert not ticks
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert iterations_of(tmp_path) == [1, 2, 3, 4]


class TestRefusals:
    @pytest.fixture
    def run_dir(self, scenes, tmp_path):
        train("base", scenes, tmp_path, config=optimiser_config(epochs=1, batch_size=16))
        return tmp_path

    @pytest.mark.parametrize("kept", [0.7, 0.001, 0.0])
    def test_truncated(self, scenes, run_dir, kept):
        path = run_dir / "resume.safetensors"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        log = (run_dir / "log.jsonl").read_bytes()
        with pytest.raises(ArtifactError, match=r"cannot be read .*Delete it and start the run again without --resume"):
            train("base", scenes, run_dir, resume=True)
        assert (run_dir / "log.jsonl").read_bytes() == log

    def test_of_another_run(self, scenes, run_dir):
        with pytest.raises(ArtifactError, match=r"other data or settings \(tiny instead of other\)\. Repeat the"):
            train("base", scenes, run_dir, resume=True, run_id="other")

    def test_of_another_network(self, scenes, run_dir):
        method = tiny_training.make_method("wilson", scenes)
        before = {key: value.clone() for key, value in method.state_dict().items()}
        with pytest.raises(ArtifactError, match=r"does not fit the network: \d+ tensors missing"):
            train("wilson", scenes, run_dir, resume=True, method=method)
        assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())

    def test_no_resume_file_of_ours(self, scenes, run_dir):
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, run_dir / "resume.safetensors")
        with pytest.raises(ArtifactError, match="no resume file of this version"):
            train("base", scenes, run_dir, resume=True)
