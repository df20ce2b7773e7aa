import pytest

from lcs.config import ConfigError
from lcs.rundir import Metrics, RunDirectory, RunError


def prepare(directory, config):
    with directory.prepared(config.resolved()):
        pass


@pytest.fixture
def run(tiny):
    directory = RunDirectory(tiny().out)
    prepare(directory, tiny())
    directory.weights_path.write_bytes(b"weights")
    return directory


def test_overwriting_leaves_other_files(run, tiny):
    notes = run.path / "notes.txt"
    notes.write_text("words")
    prepare(run, tiny(overwrite=True, seed=1))
    assert notes.read_text() == "words"
    assert not run.weights_path.exists() and run.config().seed == 1


def test_overwriting_removes_nothing_where_the_settings_are_not_a_runs(run, tiny):
    run.config_path.write_text("database: postgres")
    with pytest.raises(ConfigError, match="config.yaml: database: no such setting"):
        prepare(run, tiny(overwrite=True))
    assert run.config_path.read_text() == "database: postgres" and run.weights_path.read_bytes() == b"weights"


@pytest.mark.parametrize("line", ["garbage", '{"kind": "train"}', "[1]", '{"step": "one"}'])
def test_damaged_metrics_are_named_and_kept(run, line):
    text = f'{{"kind": "train", "step": 1}}\n{line}\n'
    run.metrics_path.write_text(text)
    with pytest.raises(RunError, match="metrics.jsonl: line 2 is damaged; remove it and go on with --resume"):
        Metrics(run.metrics_path, 5)
    assert run.metrics_path.read_text() == text


def test_a_full_disk_names_the_metrics_and_a_torn_line_goes_at_resume(run, full_disk):
    metrics = Metrics(run.metrics_path, 0)
    with full_disk(100):
        metrics.write("train", 1, loss=1.0)
        with pytest.raises(RunError, match="metrics.jsonl: cannot be written: .*; free some space, then go on with"):
            for step in (2, 3, 4, 5):
                metrics.write("train", step, loss=1.0)
        metrics.close()
    text = run.metrics_path.read_text()
    assert len(text) == 100 and not text.endswith("\n")
    Metrics(run.metrics_path, 9).close()
    assert run.metrics_path.read_text() == text[: text.rindex("\n") + 1]


def test_damaged_environment_is_named(run, tiny):
    run.environment_path.write_text("{")
    with pytest.raises(RunError, match="environment.json: damaged .* remove it and go on with --resume"):
        prepare(run, tiny(resume=True))


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_directory_that_another_run_writes_is_refused_and_stays(run, tiny, flag):
    temporary = run.checkpoints / "step-000000003.safetensorsx.tmp"
    with run.prepared(tiny(resume=True).resolved()):
        temporary.write_bytes(b"being written")
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match="run: another process trains into it; wait for its end, or stop it"):
            prepare(RunDirectory(run.path), tiny(**{flag: True}))
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    prepare(run, tiny(**{flag: True}))
    assert not temporary.exists()
