"""Plans: what is pinned, what is streamed, and what a model that does not fit is told."""

import json
from pathlib import Path

import pytest
from tiny_model import Sizes, write_tiny_model

from airllm.backends.numpy_backend import NumpyBackend
from airllm.cli import main
from airllm.formats.model_file import Extent, Tensor
from airllm.graph.graph import Role
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.util.system import MemoryLimit
from airllm.weights import disk_probe
from airllm.weights.budget import BudgetError, default_bytes, parse_bytes
from airllm.weights.plan import Part, Plan, _part, make_plan
from airllm.weights.plan_model import plan_model
from airllm.weights.ring import Matrix

Capture = pytest.CaptureFixture[str]


def part(name: str, megabytes: int) -> Part:
    n_bytes = megabytes << 20
    role: Role = "rows" if name == "embed" else "matrix"
    matrix = Matrix("m", role, "m.weight", "f32", (1, 1), 0, 0, n_bytes, n_bytes)
    return Part(name, (matrix,), (), 0)


LAYERS = [part(f"layer {i}", 100) for i in range(10)]


def planned(megabytes: int | None, *, head: int = 50, kv: int = 20, buffers: int = 10) -> Plan:
    """Ten layers of 100 MB, an embedding of 200; the reads under way take 10."""
    return make_plan(
        [part("embed", 200), *LAYERS, part("head", head)],
        budget=None if megabytes is None else megabytes << 20,
        context=1000,
        batch_size=100,
        kv_cache_bytes=kv << 20,
        buffer_bytes=buffers << 20,
    )


def test_vectors_of_experts_are_kept_as_float32() -> None:
    tensor = Tensor("ffn_up_exps.bias", "f16", (4, 64), 128, 512, (Extent(0, 0, 512),))
    made = _part("layer 0", {"ffn_up_exps.bias": "vectors"}, {tensor.name: tensor}, NumpyBackend())
    assert (made.matrices, made.kept_bytes) == ((), 4 * 4 * 64)
    assert made.kept == ((tensor.name, "vectors", tensor),)


def test_without_a_budget_everything_is_pinned() -> None:
    plan = planned(None)
    assert (len(plan.pinned_layers), plan.head, plan.embedding) == (10, "pinned", "pinned")
    assert plan.streamed_bytes_per_pass == plan.ring_bytes == 0


def test_the_embedding_is_the_last_that_is_pinned_as_a_token_takes_one_row_of_it() -> None:
    assert planned(20 + 10 + 1000 + 50 + 200).embedding == "pinned"
    plan = planned(20 + 10 + 1000 + 50 + 199)
    assert (plan.embedding, len(plan.pinned_layers), plan.streams) == ("looked up", 10, False)


def test_a_matrix_that_the_embedding_multiplies_by_stays_in_memory() -> None:
    n_bytes = 40 << 20
    matrix = Matrix("proj", "matrix", "proj.weight", "f32", (1, 1), 0, 0, n_bytes, n_bytes)
    embedding = Part("embed", (*part("embed", 200).matrices, matrix), (), 0)
    parts = [embedding, *LAYERS, part("head", 50)]

    def plan(megabytes: int) -> Plan:
        sizes = {"context": 1000, "batch_size": 100, "kv_cache_bytes": 0, "buffer_bytes": 0}
        return make_plan(parts, budget=megabytes << 20, **sizes)

    assert (plan(1290).embedding, plan(1289).embedding) == ("pinned", "looked up")
    assert plan(1289).pinned_bytes == 1090 << 20
    assert plan(1090).streams is False
    assert plan(1089).streams is True


def test_the_head_and_as_many_layers_as_fit_are_pinned_layers_evenly_spread() -> None:
    plan = planned(20 + 10 + 211 + 50 + 300)
    assert (plan.head, plan.pinned_layers, plan.slots) == ("pinned", (2, 5, 8), 2)
    assert plan.streamed_layers == (0, 1, 3, 4, 6, 7, 9)
    assert plan.streamed_bytes_per_pass == 700 << 20
    assert plan.total_bytes <= 20 + 10 + 211 + 50 + 300 << 20


def test_two_slots_come_before_a_pinned_head_and_one_slot_after_it() -> None:
    assert (planned(241).slots, planned(241).head) == (2, "streamed")
    assert (planned(200).slots, planned(200).head) == (1, "pinned")
    assert (planned(142).slots, planned(142).head) == (1, "streamed")
    assert planned(142).streamed_bytes_per_pass == 1050 << 20


def test_a_model_that_does_not_run_is_told_the_smallest_budget_that_would_do() -> None:
    with pytest.raises(BudgetError) as refusal:
        planned(100)
    smallest = refusal.value.minimum
    assert 140 << 20 < smallest <= 142 << 20
    assert f"({smallest} bytes)" in str(refusal.value)
    assert "20.0 MiB are the KV cache of a context of 1000 tokens" in str(refusal.value)


def test_a_disks_speed_gives_the_tokens_to_expect() -> None:
    plan = planned(600).with_disk(700 * 2.0**20)
    assert plan.expected_tokens_per_second == pytest.approx(1.0)
    assert planned(None).with_disk(1e9).expected_tokens_per_second is None


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2GiB", 2 << 30),
        ("2gb", 2 * 10**9),
        ("1.5G", 1_500_000_000),
        ("500 MB", 500_000_000),
        ("64KiB", 65536),
        ("1073741824", 1 << 30),
        ("10 b", 10),
    ],
)
def test_sizes_have_units_of_1000_or_1024(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "1e9", "2 XiB", "two", "1GiB2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_the_default_leaves_room() -> None:
    assert default_bytes(None) is None
    assert default_bytes(1 << 30) == (1 << 30) - (256 << 20)
    assert default_bytes(100 << 30) == int(0.9 * (100 << 30))
    assert default_bytes(1 << 20) == 0


@pytest.mark.parametrize(
    ("limit", "available", "said"),
    [
        (
            MemoryLimit(2 << 30, 5 << 30, Path("/sys/fs/cgroup/memory.max")),
            0,
            "5.0 GiB of the 2.0 GiB that /sys/fs/cgroup/memory.max allows are used, and 256 MiB "
            "stay free for other programs; raise that limit, end other programs within it, or ",
        ),
        (MemoryLimit(9 << 30, 1 << 30, Path("/x")), 1 << 20, "1.0 MiB are available, and 256 MiB"),
        (None, 200 << 20, "200 MiB are available, and 256 MiB stay free for other programs; end "),
    ],
)
def test_where_no_memory_is_left_the_refusal_says_what_is_used_the_limit_and_the_way_out(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: MemoryLimit | None,
    available: int,
    said: str,
) -> None:
    monkeypatch.setattr("airllm.util.system.memory_limit", lambda: limit)
    monkeypatch.setattr("airllm.util.system.available_memory", lambda: available)
    monkeypatch.delenv("AIRLLM_RAM", raising=False)
    with pytest.raises(BudgetError) as refused:
        plan_model(model)
    message = str(refused.value)
    assert message.startswith(f"the model does not run in what is left of the memory ({said}")
    assert "or grant memory with --ram, ram_budget= or AIRLLM_RAM): it needs at least " in message
    plan_model(model, ram_budget=refused.value.minimum)


# ---- airllm plan ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = Sizes(hidden=512, ffn=1024, n_layers=8, n_heads=8, head_dim=64, rope_dims=64)
    return write_tiny_model(tmp_path_factory.mktemp("model"), "q4_0", sizes=sizes).path


def plan_of(model: Path, *options: str) -> int:
    return main(["plan", "-m", str(model), "--backend", "numpy", *options])


def test_plan_says_what_the_engine_then_does(model: Path, capsys: Capture) -> None:
    assert plan_of(model, "--ram", "14MiB", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    with LayerWiseInferenceEngine(model, backend="numpy", ram_budget="14MiB") as engine:
        plan = engine.plan()
        assert engine.plan(probe=True).disk_bytes_per_second
    assert plan.streams
    probed = {name: found.pop(name) for name in ("disk_bytes_per_second", "model")}
    expected = {**plan.as_dict(), "expected_tokens_per_second": found["expected_tokens_per_second"]}
    del expected["disk_bytes_per_second"]
    assert found == json.loads(json.dumps(expected))
    assert found["expected_tokens_per_second"] == pytest.approx(
        probed["disk_bytes_per_second"] / plan.streamed_bytes_per_pass
    )


def test_plan_in_words(model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airllm.weights.disk_probe.disk_bytes_per_second", lambda *_: 1e9)
    assert plan_of(model, "--ram", "14MiB", "--context", "96") == 0
    said = {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}
    assert said["memory"].endswith("MiB of 14.0 MiB")
    assert said["KV cache"].endswith("for a context of 96 tokens")
    assert "of 8 layers, the head" in said["pinned"]
    assert said["streamed"].endswith(" a token")
    assert " layers" in said["ring"]
    assert said["disk"] == "1.00 GB/s"
    assert said["expected"].endswith(" tokens/s")


def test_plan_without_a_need_to_stream_probes_nothing(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airllm.weights.disk_probe.disk_bytes_per_second", None)
    assert plan_of(model, "--ram", "1GiB") == 0
    assert "nothing: the disk is read once" in capsys.readouterr().out


def test_plan_refuses_a_model_that_cannot_run_with_the_smallest_ram(
    model: Path, capsys: Capture
) -> None:
    assert plan_of(model, "--ram", "100KiB") == 1
    refusal = capsys.readouterr().err
    rounded, _, rest = refusal.partition("needs at least ")[2].partition(" (")
    smallest = rest.partition(" bytes")[0]
    assert plan_of(model, "--ram", rounded, "--json") == 0
    capsys.readouterr()
    assert plan_of(model, "--ram", smallest, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total_bytes"] <= int(smallest)
    assert plan_of(model, "--ram", str(int(smallest) - 1)) == 1


def test_a_ram_that_is_no_size_is_a_usage_error(model: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        plan_of(model, "--ram", "plenty")
    assert exit.value.code == 2
    assert "'plenty' is no size" in capsys.readouterr().err


def test_a_probe_reads_for_no_longer_than_it_may(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_probe, "SECTION_BYTES", 65536)
    monkeypatch.setattr(disk_probe, "PROBE_SECONDS", 0.0)
    plan = plan_model(model, backend="numpy", ram_budget="14MiB", probe=True)
    assert plan.disk_bytes_per_second is not None
    assert plan.disk_bytes_per_second > 0
