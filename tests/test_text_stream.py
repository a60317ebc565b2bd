"""Text from tokens' bytes: whole characters, and nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airllm.text.text_stream import TextStream


def pushed(stream: TextStream, *chunks: bytes | str) -> list[str]:
    return [stream.push(c.encode() if isinstance(c, str) else c) for c in chunks]


# ---- characters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("char", ["é", "€", "🦙"])
def test_a_character_comes_with_its_last_byte(char):
    raw = char.encode()
    pieces = pushed(TextStream(), *(raw[i : i + 1] for i in range(len(raw))))
    assert pieces == [""] * (len(raw) - 1) + [char]


def test_complete_characters_come_while_the_next_is_incomplete():
    assert pushed(TextStream(), b"caf\xc3", b"\xa9 ol\xc3", b"\xa9") == ["caf", "é ol", "é"]


def test_bytes_that_are_no_utf8_become_replacement_characters():
    assert pushed(TextStream(), b"a\xff", b"\xc3(") == ["a\N{REPLACEMENT CHARACTER}", "�("]


def test_an_incomplete_character_at_the_end_is_dropped():
    stream = TextStream()
    assert pushed(stream, b"ok \xf0\x9f\xa6") == ["ok "]
    assert stream.finish() == ""


# ---- stop strings --------------------------------------------------------------------------------


def test_a_stop_string_ends_the_text_before_it():
    stream = TextStream(["STOP"])
    assert pushed(stream, "go STOP on") == ["go "]
    assert stream.stopped
    assert pushed(stream, "more") == [""]
    assert stream.finish() == ""


def test_nothing_of_a_stop_string_that_spans_tokens_is_shown():
    stream = TextStream(["\nUser:"])
    assert pushed(stream, "Hi", "\n", "Us", "er", ":", " x") == ["Hi", "", "", "", "", ""]
    assert stream.stopped


def test_what_only_looked_like_a_stop_string_is_shown_once_it_is_certain():
    stream = TextStream(["\nUser:"])
    assert pushed(stream, "a\nUs", "eful") == ["a", "\nUseful"]
    assert not stream.stopped


def test_what_looked_like_a_stop_string_is_shown_at_the_end():
    stream = TextStream(["\nUser:"])
    assert pushed(stream, "a\nUser") == ["a"]
    assert stream.finish() == "\nUser"


def test_a_stop_string_that_begins_inside_a_false_start_is_found():
    stream = TextStream(["aab"])
    assert pushed(stream, "a", "a", "a", "b") == ["", "", "a", ""]
    assert stream.stopped


def test_the_first_of_several_stop_strings_counts():
    stream = TextStream(["three", "two"])
    assert pushed(stream, "one two three") == ["one "]


def test_a_stop_string_can_end_in_the_middle_of_a_tokens_bytes():
    stream = TextStream(["é!"])
    assert pushed(stream, b"ol\xc3", b"\xa9", b"! more") == ["ol", "", ""]
    assert stream.stopped


# ---- for any text --------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab🦙é\n"), max_size=30)


@given(texts, st.lists(st.integers(1, 5), min_size=1), st.lists(texts.filter(bool), max_size=3))
def test_any_cutting_into_tokens_gives_the_same_text(text, lengths, stops):
    stream, raw, shown, at, index = TextStream(stops), text.encode(), "", 0, 0
    while at < len(raw):
        shown += stream.push(raw[at : at + lengths[index % len(lengths)]])
        at, index = at + lengths[index % len(lengths)], index + 1
    shown += stream.finish()
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    assert shown == text or stream.stopped
