"""Ops with recurrent memory, and what stands around them."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Attr, Buffer, Weight

__all__ = ["RecurrentOps"]


class RecurrentOps(OpEmitter):
    def conv(
        self,
        x: Buffer,
        weight: Weight,
        *,
        dilation: int = 1,
        silu: bool = False,
        out: Buffer | None = None,
    ) -> Buffer:
        """A causal convolution of each channel over the tokens of the sequence, or silu of that.
        x: [n_tokens, channels], weight: [channels, taps], the last tap for the token itself, and
        each earlier one for the token `dilation` positions before that of the next tap."""
        taps = weight.shape[1]
        return self._emit("conv", [x], out, [weight], taps=taps, dilation=dilation, silu=silu)

    def delta_rule(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        decay: Buffer,
        beta: Buffer,
        n_heads: int,
        n_kv_heads: int,
        *,
        scale: float,
        tiled: bool = False,
    ) -> Buffer:
        """The gated delta rule, see ops.SIGNATURES. q, k: [n_tokens, n_kv_heads * d_k], v:
        [n_tokens, n_heads * d_v], decay: [n_tokens, n_heads] or [n_tokens, n_heads * d_k], a
        logarithm; beta: [n_tokens, n_heads] -> [n_tokens, n_heads * d_v]"""
        inputs = [q, k, v, decay, beta]
        attrs: dict[str, Attr] = {"n_heads": n_heads, "n_kv_heads": n_kv_heads}
        return self._emit("delta_rule", inputs, None, (), scale=scale, tiled=tiled, **attrs)

    def ssm_scan(
        self,
        x: Buffer,
        dt: Buffer,
        b: Buffer,
        c: Buffer,
        weights: tuple[Weight, Weight, Weight],
        *,
        n_groups: int,
        dt_limits: tuple[float, float] = (0.0, 3e38),
    ) -> Buffer:
        """The scan of Mamba-2, see ops.SIGNATURES. x: [n_tokens, n_heads * head_dim], dt:
        [n_tokens, n_heads], b, c: [n_tokens, n_groups * d_state]; weights: a, skip and the bias of
        dt, [n_heads] each -> [n_tokens, n_heads * head_dim]"""
        low, high = dt_limits
        attrs: dict[str, Attr] = {"n_groups": n_groups, "dt_min": low, "dt_max": high}
        return self._emit("ssm_scan", [x, dt, b, c], None, weights, **attrs)

    def selective_scan(self, x: Buffer, dt: Buffer, b: Buffer, c: Buffer, a: Weight) -> Buffer:
        """The scan of Mamba, see ops.SIGNATURES. x, dt: [n_tokens, channels], b, c:
        [n_tokens, d_state]; a: [channels, d_state] -> [n_tokens, channels]"""
        return self._emit("selective_scan", [x, dt, b, c], None, [a])

    def l2_norm(self, x: Buffer, n_heads: int, eps: float, *, out: Buffer | None = None) -> Buffer:
        """x / sqrt(sum(x^2) + eps) of each head. x: [n_tokens, n_heads * d]"""
        return self._emit("l2_norm", [x], out, n_heads=n_heads, eps=eps)

    def log_decay(
        self,
        x: Buffer,
        a: Weight,
        bias: Weight,
        *,
        bound: float = 0.0,
        out: Buffer | None = None,
    ) -> Buffer:
        """a * softplus(x + bias), or with a bound below 0 bound * sigmoid(-a * (x + bias)). bias:
        [width], a: [width / m], each for m columns"""
        return self._emit("log_decay", [x], out, [a, bias], bound=bound)

    def group_norm(
        self, x: Buffer, weight: Weight, n_groups: int, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """rms_norm of each of n_groups equal parts of a row. weight: [width of x]"""
        return self._emit("group_norm", [x], out, [weight], n_groups=n_groups, eps=eps)
