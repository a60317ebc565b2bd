"""What works on each element of a row."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Buffer, Weight

__all__ = ["ElementwiseOps"]


class ElementwiseOps(OpEmitter):
    def swiglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """silu(gate) * up"""
        return self._emit("swiglu", [gate, up], out)

    def geglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """gelu(gate) * up, gelu by its tanh approximation"""
        return self._emit("geglu", [gate, up], out)

    def swiglu_oai(
        self,
        gate: Buffer,
        up: Buffer,
        *,
        alpha: float,
        limit: float,
        shift: float = 1.0,
        out: Buffer | None = None,
    ) -> Buffer:
        """g * sigmoid(alpha * g) * (u + shift), with g = min(gate, limit) and u = up, held between
        -limit and limit"""
        return self._emit("swiglu_oai", [gate, up], out, alpha=alpha, limit=limit, shift=shift)

    def softcap(self, x: Buffer, cap: float, *, out: Buffer | None = None) -> Buffer:
        """cap * tanh(x / cap)"""
        return self._emit("softcap", [x], out, cap=cap)

    def add(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("add", [a, b], out)

    def multiply(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("multiply", [a, b], out)

    def scale(
        self,
        x: Buffer,
        factor: float = 1.0,
        weight: Weight | None = None,
        *,
        out: Buffer | None = None,
    ) -> Buffer:
        """factor * x, and times the weight, [1] or [width of x], if there is one"""
        return self._emit("scale", [x], out, [] if weight is None else [weight], factor=factor)

    def scale_rows(self, x: Buffer, factors: Buffer, *, out: Buffer | None = None) -> Buffer:
        """Each row of x times its factors. factors: [n_tokens, m], each for width / m columns"""
        return self._emit("scale_rows", [x, factors], out)

    def clamp(self, x: Buffer, low: float, high: float, *, out: Buffer | None = None) -> Buffer:
        """min(max(x, low), high)"""
        return self._emit("clamp", [x], out, low=low, high=high)

    def signed_root(self, x: Buffer, least: float, *, out: Buffer | None = None) -> Buffer:
        """sign(x) * sqrt(max(|x|, least))"""
        return self._emit("signed_root", [x], out, least=least)

    def keep_above(self, x: Buffer, factor: float, *, out: Buffer | None = None) -> Buffer:
        """What of x is above mean + factor * deviation of its row, and 0 for the rest"""
        return self._emit("keep_above", [x], out, factor=factor)

    def sigmoid(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("sigmoid", [x], out)

    def relu_squared(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """max(x, 0)^2"""
        return self._emit("relu_squared", [x], out)

    def silu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("silu", [x], out)

    def softplus(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """log(1 + exp(x))"""
        return self._emit("softplus", [x], out)

    def gelu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """By its tanh approximation."""
        return self._emit("gelu", [x], out)

    def gelu_erf(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """As it is defined, by erf."""
        return self._emit("gelu_erf", [x], out)

    def xielu(
        self,
        x: Buffer,
        *,
        positive: float,
        negative: float,
        beta: float,
        eps: float,
        out: Buffer | None = None,
    ) -> Buffer:
        """positive * x^2 + beta * x for x > 0, negative * (exp(min(x, eps)) - 1 - x) + beta * x for
        the others (arXiv:2411.13010)"""
        return self._emit(
            "xielu", [x], out, positive=positive, negative=negative, beta=beta, eps=eps
        )
