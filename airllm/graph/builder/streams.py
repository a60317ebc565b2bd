"""Several residual streams of a token."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Buffer, Weight

__all__ = ["StreamOps"]


class StreamOps(OpEmitter):
    def mix_streams(self, x: Buffer, factors: Buffer, n_streams: int) -> Buffer:
        """Stream i is the sum over j of factors[i, j] * x[j]. x: [n_tokens, n_streams * n],
        factors: [n_tokens, n_out * n_streams] -> [n_tokens, n_out * n]"""
        return self._emit("mix_streams", [x, factors], None, n_streams=n_streams)

    def hyper_factors(
        self, x: Buffer, scale: Weight, base: Weight, n_streams: int, n_iterations: int, eps: float
    ) -> Buffer:
        """How n_streams streams are summed up, added to and mixed, see ops.SIGNATURES. x:
        [n_tokens, n_streams * (2 + n_streams)], or [n_tokens, n_streams] for sums only"""
        return self._emit(
            "hyper_factors",
            [x],
            None,
            [scale, base],
            n_streams=n_streams,
            n_iterations=n_iterations,
            eps=eps,
        )

    def hyper_mix(
        self,
        x: Buffer,
        part: Buffer,
        factors: Buffer,
        n_streams: int,
        *,
        out: Buffer | None = None,
    ) -> Buffer:
        """The streams x, mixed, plus the part in each, by what hyper_factors gave. x: [n_tokens,
        n_streams * n], part: [n_tokens, n]"""
        return self._emit("hyper_mix", [x, part, factors], out, n_streams=n_streams)

    def add_to_streams(
        self, x: Buffer, part: Buffer, *, first: int = 0, out: Buffer | None = None
    ) -> Buffer:
        """x plus part in each stream from `first` on. x: [n_tokens, n_streams * n], part:
        [n_tokens, n]"""
        return self._emit("add_to_streams", [x, part], out, first=first)

    def match_rms(
        self, x: Buffer, like: Buffer, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """Each stream of x with the root mean square of `like`, but not more than
        rms(like) / sqrt(eps) times as large as it was. x: [n_tokens, n_streams * n], like:
        [n_tokens, n]"""
        return self._emit("match_rms", [x, like], out, eps=eps)

    def stream_products(self, a: Buffer, b: Buffer, n_streams: int, factor: float) -> Buffer:
        """factor * sum(a * b) of each stream. a, b: [n_tokens, n_streams * n]
        -> [n_tokens, n_streams]"""
        return self._emit("stream_products", [a, b], None, n_streams=n_streams, factor=factor)

    def residual_attention(
        self, x: Buffer, earlier: Buffer, weight: Weight, n_earlier: int, eps: float
    ) -> Buffer:
        """A mean of x and of the first n_earlier rows of as many values in each row of `earlier`,
        see ops.SIGNATURES. weight: [width of x]"""
        inputs = [x, earlier]
        return self._emit(
            "residual_attention", inputs, None, [weight], n_earlier=n_earlier, eps=eps
        )
