"""Recorded runs of stock dllama, played to our node: what it sends is what the stock worker sent.

Bounds, absolute: the stock program's exp is approximate (6e-5), which F32 slices show. Q80 slices
differ where a value lies so close to the middle of two integers that a last bit decides; one step
is the block's largest value / 127, and the largest value in these recordings is 5.5.
"""

import dllama_recording
import pytest
from dllama_playback import play
from extension import EVERY_BACKEND, forced_isa

from airllm.backends import load_backend
from airllm.cluster.wire import FloatType

F32_SLICES, F32_AFTER_Q80, Q80_STEP = 3e-5, 3e-6, 5.5 / 127

LINKS = [
    (name, number, worker)
    for name in dllama_recording.NAMES
    for number, run in enumerate(dllama_recording.read_recording(name))
    for worker, order in run
    if order == 0
]


@pytest.fixture(scope="module", params=EVERY_BACKEND)
def backend(request):
    if request.param == "numpy":
        yield load_backend("numpy")
        return
    with forced_isa(request.param.removeprefix("cpp-")):
        yield load_backend("cpp")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "number", "worker"), LINKS)
def test_the_answers_are_the_stock_workers(name, number, worker, backend, threads):
    if threads == 2 and backend.name == "numpy":
        pytest.skip("NumPy has threads of its own")
    run = dllama_recording.read_recording(name)[number]
    found = play(run, worker, backend, threads)
    assert found.bytes_compared == len(run[worker, 0].from_worker) - 4 * 4
    quantized = FloatType.Q80 in found.error
    assert found.error[FloatType.F32] <= (F32_AFTER_Q80 if quantized else F32_SLICES)
    assert found.error.get(FloatType.Q80, 0.0) <= Q80_STEP
