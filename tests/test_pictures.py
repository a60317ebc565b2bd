"""Pictures of measurements: what they show, that nothing in them covers anything else, and the
files of peers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airllm import numpy_ops
from airllm.tools import ceilings, operation_bars, picture_style, pictures, speeds
from airllm.tools.ceilings import Ceilings
from airllm.tools.operation_bars import Bar, Work
from airllm.tools.speeds import Speed, SpeedsError

LIMITS = Ceilings(gbytes_per_second=40.0, float_gflops=400.0, byte_gops=1500.0)


def speed(test: str, threads: int, rate: float, who: str = "airllm") -> Speed:
    row = {"test": test, "threads": threads, "tokens_per_second": rate, "stddev": rate / 20}
    return speeds.from_rows([row], who)[0]


SPEEDS = [
    speed(test, threads, rate * threads**0.8)
    for threads in (1, 2, 4)
    for test, rate in [
        ("pp128", 700.0), ("pp512", 800.0), ("tg64", 50.0), ("tg64@1024", 40.0),
        ("tg64@4096", 25.0), ("tg64x4", 120.0), ("tg64x8", 180.0),
    ]
]  # fmt: skip


def work(of: Speed) -> Work:
    """Twenty operations in two heaps, in each of which they are of nearly the same intensity and
    speed."""
    parts = [
        Bar(
            f"linear_add some_weight_{n}",
            1e-3 * (20 - n),
            20_000 if n % 2 else 10_000_000,
            10_000_000 * (n % 3 + 1),
        )
        for n in range(20)
    ]
    return Work(
        of,
        4,
        [*parts, Bar("attention", 4e-3, 9_000_000, 900), Bar("(Python)", 1e-3, is_op=False)],
    )


PEERS = [speed("pp512", threads, 300.0 * threads, "llama.cpp") for threads in (1, 2, 4)]


LOW = Ceilings(gbytes_per_second=3.0, float_gflops=0.6, byte_gops=1.2)  # where the points are


@pytest.fixture(scope="module", params=[LIMITS, LOW], ids=["high", "low"])
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = pictures.draw_all(SPEEDS, PEERS, [work(s) for s in SPEEDS], request.param, "M", "here")
    for figure in drawn.values():
        figure.canvas.draw()
    yield drawn
    picture_style.close(drawn.values())


def texts(figure: Any) -> list[str]:
    panels = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return panels + legends


def test_there_is_a_picture_for_each_question_that_was_measured(figures: dict[str, Any]) -> None:
    assert list(figures) == ["threads", "context", "batch", "operations", "roofline"]


def test_what_was_not_measured_is_not_drawn() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    alone = [speed("tg64", 2, 50.0)]
    assert pictures.draw_all(alone, [], [], None, "M", "here") == {}


def test_lines_are_the_measurements_beside_those_of_a_peer(figures: dict[str, Any]) -> None:
    prompt, generated = figures["threads"].axes
    assert list(prompt.lines[0].get_xdata()) == [1, 2, 4]
    assert {"airllm", "llama.cpp"} <= set(texts(figures["threads"]))
    said = [text.get_text() for text in prompt.texts]
    assert said == ["800", "1,393", "2,425", "300", "600", "1,200"]
    assert generated.get_title(loc="left") == "Generated text, tokens a second"
    context = figures["context"].axes[1]
    assert [tick.get_text() for tick in context.get_xticklabels()] == ["0", "1,024", "4,096"]
    assert any("(3.6x)" in text for text in texts(figures["batch"]))


def test_bars_are_the_longest_operations_and_the_rest_together(figures: dict[str, Any]) -> None:
    titles = [axes.get_title(loc="left") for axes in figures["operations"].axes]
    assert [title.partition(":")[0] for title in titles] == [
        "prompt of 512 tokens", "generated tokens", "generated tokens after 4,096",
        "generated tokens, 8 sequences together",
    ]  # fmt: skip
    labels = [label.get_text() for label in figures["operations"].axes[0].get_yticklabels()]
    assert labels[0] == "linear_add some_weight_0"
    assert labels[-1].endswith(" others")
    assert len(labels) <= operation_bars.MOST_BARS + 1
    shares = [text.get_text().split("%")[0] for text in figures["operations"].axes[0].texts]
    assert sum(map(float, shares)) == pytest.approx(100, abs=4)


@pytest.mark.parametrize("name", ["threads", "context", "batch", "operations", "roofline"])
def test_no_text_covers_another_or_leaves_the_picture(name: str, figures: dict[str, Any]) -> None:
    figure = figures[name]
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    if figure._suptitle is not None:
        found.append(figure._suptitle)
    for axes in figure.axes:
        found += [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        found += _shown_ticks(axes.xaxis) + _shown_ticks(axes.yaxis)
    found = [text for text in dict.fromkeys(found) if text.get_text()]
    # Of an annotation its text, without the line to its point.
    boxes = [_box(text, renderer) for text in found]
    width, height = figure.canvas.get_width_height()
    for text, box in zip(found, boxes, strict=True):
        assert box.x0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= height + 1, text
    covered = [
        (one.get_text(), other.get_text())
        for n, (one, box) in enumerate(zip(found, boxes, strict=True))
        for other, further in zip(found[n + 1 :], boxes[n + 1 :], strict=True)
        if box.shrunk(0.96, 0.8).overlaps(further.shrunk(0.96, 0.8))
    ]
    assert covered == []


def _shown_ticks(axis: Any) -> list[Any]:
    """The labels of ticks within the panel; matplotlib has more, which it does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    return [label for place, label in ticks if low <= place <= high]


def _box(text: Any, renderer: Any) -> Any:
    from matplotlib.text import Text

    return Text.get_window_extent(text, renderer)


# Files of peers.


def test_a_file_of_llama_bench_is_read(tmp_path: Path) -> None:
    rows = [
        {"n_prompt": 512, "n_gen": 0, "n_threads": 2, "avg_ts": 300.5, "stddev_ts": 1.5},
        {"n_prompt": 0, "n_gen": 64, "n_depth": 1024, "n_threads": 2, "avg_ts": 30.0},
    ]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    assert speeds.read(tmp_path / "l.json") == [
        Speed("llama.cpp", "pp", 512, 1, 0, 2, 300.5, 1.5),
        Speed("llama.cpp", "tg", 64, 1, 1024, 2, 30.0, 0.0),
    ]


def test_a_file_of_our_own_is_read_under_its_name(tmp_path: Path) -> None:
    row = {"test": "tg64x8@512", "threads": 2, "tokens_per_second": 9.5, "stddev": 0.5}
    (tmp_path / "yesterday.json").write_text(json.dumps({"model": "m", "results": [row]}))
    assert speeds.read(tmp_path / "yesterday.json") == [
        Speed("yesterday", "tg", 64, 8, 512, 2, 9.5, 0.5)
    ]


def test_of_a_comparison_llama_cpps_speeds_are_read(tmp_path: Path) -> None:
    row = {"test": "tg64@512", "threads": 1, "airllm": [9.0], "llama_cpp": [3.0, 5.0, 4.0]}
    (tmp_path / "c.json").write_text(json.dumps({"results": [row]}))
    assert speeds.read(tmp_path / "c.json") == [Speed("llama.cpp", "tg", 64, 1, 512, 1, 4.0, 1.0)]


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "[" * 100_000, '{"results": 7}', '{"results": [{"test": "x"}]}', '{"a": 1}', "7",
     '[{"n_prompt": 1, "n_gen": 1, "n_threads": 1, "avg_ts": 1}]',
     '[{"n_prompt": 1e999, "n_gen": 0, "n_threads": 1, "avg_ts": 1}]'],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SpeedsError, match=r"x.json: expected the JSON of llama-bench"):
        speeds.read(tmp_path / "x.json")


def test_ceilings_are_those_of_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(ceilings, "WIDTH", 64)
    clock = iter(np.arange(0, 1000, 0.5))  # each call takes half a second
    monkeypatch.setattr(ceilings, "perf_counter", lambda: float(next(clock)))
    found = ceilings.measure(numpy_ops)
    assert found.gbytes_per_second == pytest.approx((1 << 22) / 0.5 / 1e9)
    assert found.float_gflops == found.byte_gops == pytest.approx(2 * 64**3 / 0.5 / 1e9)
