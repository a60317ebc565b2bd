"""What was evaluated is kept in a folder over restarts, and only what is whole is read."""

import logging
import stat

import pytest
from extension import require_cpp
from family_models import write_family_model
from scheduling import NoText, alone, ask, run
from test_prefix_tree import LAYERS, MUCH, Forest, numbers
from test_sequence_state import append
from tiny_model import Sizes, write_tiny_model

from airllm.layer_engine import LayerWiseInferenceEngine as Engine
from airllm.state import session
from airllm.state.prefix_files import PrefixFolder

CONTEXT = 600
PROMPT = [(7 * i) % 150 + 3 for i in range(400)]


def answer(path, folder, prompt, **settings):
    """Of an engine and a scheduler that live for one request."""
    with Engine(path, backend="cpp", context=CONTEXT, **settings) as engine:
        engine._model.prompts.tokenizer = NoText()
        with engine.scheduler(cache_dir=folder) as scheduler:
            _, told = ask(scheduler, prompt)
            run(scheduler)
        return told.answer


@pytest.fixture(params=["llama", "gemma3", "qwen35"])
def path(request, tmp_path):
    require_cpp()
    if request.param == "llama":
        return write_tiny_model(tmp_path, "q8_0", sizes=Sizes(context=CONTEXT)).path
    context = {f"{request.param}.context_length": CONTEXT}
    return write_family_model(tmp_path, request.param, **context)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept" / "prompts"


def test_a_prompt_that_goes_on_after_a_restart_is_evaluated_from_there(path, folder):
    first = answer(path, folder, PROMPT)
    assert first.reused_tokens == 0
    longer = [*PROMPT, *PROMPT[:100]]
    second = answer(path, folder, longer)
    assert second.reused_tokens == 400
    with Engine(path, backend="cpp", context=CONTEXT) as engine:
        engine._model.prompts.tokenizer = NoText()
        assert second.tokens == alone(engine, longer).tokens


def test_what_is_there_is_not_written_again_and_what_is_forgotten_goes(path, folder):
    answer(path, folder, PROMPT)
    before = {each: each.stat().st_ino for each in folder.iterdir()}
    assert before
    answer(path, folder, PROMPT)
    after = {each: each.stat().st_ino for each in folder.iterdir()}
    assert before.items() <= after.items()
    with (
        Engine(path, backend="cpp", context=CONTEXT) as engine,
        engine.scheduler(cache_dir=folder, cache_bytes=0),
    ):
        pass
    assert not list(folder.iterdir())


def test_an_engine_that_is_closed_before_its_scheduler_loses_nothing(path, folder):
    with Engine(path, backend="cpp", context=CONTEXT) as engine:
        engine._model.prompts.tokenizer = NoText()
        with engine.scheduler(cache_dir=folder) as scheduler:
            ask(scheduler, PROMPT)
            run(scheduler)
            engine.close()
    assert answer(path, folder, PROMPT).reused_tokens > 0


def test_only_the_user_may_read_it(path, folder):
    answer(path, folder, PROMPT)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


def test_damaged_files_are_left_out_with_a_warning(path, folder, caplog):
    expected = answer(path, folder, PROMPT).tokens
    for each in folder.iterdir():
        data = bytearray(each.read_bytes())
        data[len(data) // 2] ^= 1
        each.write_bytes(data)
    with caplog.at_level(logging.WARNING, "airllm"):
        found = answer(path, folder, PROMPT)
    assert (found.reused_tokens, found.tokens) == (0, expected)
    assert "its checksum is wrong" in caplog.text


def test_another_model_or_type_of_cache_takes_nothing(path, folder, tmp_path):
    answer(path, folder, PROMPT)
    assert answer(path, folder, PROMPT, kv_type="f32").reused_tokens == 0
    assert answer(path, folder, PROMPT).reused_tokens > 0  # both are there
    assert {each.name.split("-")[1] for each in folder.iterdir()} == {"f16", "f32"}
    (tmp_path / "other").mkdir()
    other = write_tiny_model(tmp_path / "other", "q4_0", sizes=Sizes(context=CONTEXT)).path
    assert answer(other, folder, PROMPT).reused_tokens == 0


def test_a_folder_that_cannot_be_written_is_a_warning(path, tmp_path, caplog):
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    assert answer(path, blocked / "below", PROMPT).tokens
    assert "is not kept for the next start" in caplog.text


def test_a_folder_to_which_others_may_write_is_not_read(path, folder, caplog):
    answer(path, folder, PROMPT)
    folder.chmod(0o777)
    assert answer(path, folder, PROMPT).reused_tokens == 0
    assert "can be written by other users" in caplog.text


# ---- a tree and its files, without a model -----------------------------------------------------

FINGERPRINT = b"\1" * 32


def files(folder, forest):
    return PrefixFolder(folder, forest.layout, FINGERPRINT)


def kept(folder, *sequences):
    """A forest whose tree has these sequences, the last one used last, and was written."""
    forest = Forest(LAYERS["whole"])
    for tokens in sequences:
        forest.add(tokens)
    files(folder, forest).save(forest.tree, forest.state)
    return forest


def read(folder, most_bytes=MUCH):
    forest = Forest(LAYERS["whole"], most_bytes)
    files(folder, forest).load(forest.tree, forest.state, 5000)
    return forest


def test_the_most_recently_used_is_read_where_there_is_no_room_for_all(folder):
    sequences = [numbers(60, first) for first in (1000, 2000, 3000)]
    kept(folder, *sequences)
    forest = read(folder)
    assert forest.longest(sequences[0]) == 60  # used, and its file stays as it is
    files(folder, forest).save(forest.tree, forest.state)
    size = max(each.stat().st_size for each in folder.iterdir())
    forest = read(folder, size + 1)
    assert [forest.longest(each) for each in sequences] == [60, 0, 0]


def test_what_was_used_first_goes_first_after_a_restart(folder):
    sequences = [numbers(60, first) for first in (1000, 2000, 3000)]
    kept(folder, *sequences)
    forest = read(folder)
    forest.tree.shrink(2 * forest.layout.page_bytes[0])
    assert [forest.longest(each) for each in sequences] == [0, 60, 60]


def test_sequences_that_begin_alike_have_files_of_their_own(folder):
    sequences = [[*numbers(60), 100 + last] for last in range(3)]
    kept(folder, *sequences)
    assert [read(folder).longest(each) for each in sequences] == [61, 61, 61]


@pytest.mark.parametrize("kinds", ["7x60 ", "7x1", "7x59", "7x61", "7x30,7x31", "x60", "7x60,", ""])
def test_a_file_whose_kinds_are_not_those_of_its_tokens_is_left_out(folder, kinds, caplog):
    forest = kept(folder, numbers(60))
    append(forest.state, numbers(60))
    (path,) = folder.iterdir()
    said = [{"role": "kinds", "content": kinds}]
    session.save(path, forest.state, FINGERPRINT, said)
    assert len(read(folder).tree) == 0
    assert "not reused" in caplog.text


def test_no_more_files_are_read_than_there_is_room_for(folder, monkeypatch):
    kept(folder, *(numbers(60, first) for first in (1000, 2000, 3000)))
    load, loaded = session.load, []
    monkeypatch.setattr(
        session, "load", lambda path, *rest: loaded.append(path) or load(path, *rest)
    )
    read(folder, 2 * max(path.stat().st_size for path in folder.iterdir()))
    assert len(loaded) == 2


def test_a_file_that_has_gone_meanwhile_is_no_error(folder):
    forest = kept(folder, numbers(60))
    (path,) = folder.iterdir()
    files(folder, forest).keep_only([folder / "gone.session", path])
    assert list(folder.iterdir()) == [path]


def test_a_state_that_served_for_files_is_empty(folder):
    forest = kept(folder, numbers(60))
    assert forest.state.length == 0
    assert read(folder).state.length == 0


def test_models_that_share_a_folder_keep_their_files(folder):
    kept(folder, numbers(60))
    other = Forest(LAYERS["whole"])
    other.add(numbers(60, 2000))
    PrefixFolder(folder, other.layout, b"\2" * 32).save(other.tree, other.state)
    assert read(folder).longest(numbers(60)) == 60
