"""Routing, and products of experts."""

from typing import Literal

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Buffer, Gating, Weight

__all__ = ["ExpertOps"]


class ExpertOps(OpEmitter):
    def route(
        self,
        logits: Buffer,
        n_used: int,
        *,
        normalized: bool,
        gating: Gating = "softmax",
        scale: float = 1.0,
        bias: Weight | None = None,
        n_groups: int = 1,
        n_groups_used: int = 1,
        group_score: Literal["top2", "max"] = "top2",
    ) -> Buffer:
        """Chooses n_used experts for each token. logits: [n_tokens, n_experts] -> [n_tokens,
        2 * n_used], the numbers of the experts, then their shares.

        gating: a share is the softmax or sigmoid of the logits, or the root of their softplus. By
        "sparsemixer" it is the softmax among the logits near the chosen one of those that are left.
        normalized: the chosen shares are divided by their sum. scale: they are multiplied by it in
        the end.
        bias: [n_experts], added to the shares for the choice only.
        n_groups: equal groups of experts, of which only the best n_groups_used are chosen from; a
        group's score is the sum of its two highest scores, or its highest.

        Softmax over the chosen logits alone is the normalized softmax over all.
        """
        return self._emit(
            "route",
            [logits],
            None,
            [] if bias is None else [bias],
            n_used=n_used,
            normalized=normalized,
            gating=gating,
            scale=scale,
            n_groups=n_groups,
            n_groups_used=n_groups_used,
            group_score=group_score,
        )

    def route_to(
        self,
        logits: Buffer,
        experts: Buffer,
        *,
        normalized: bool,
        gating: Gating = "softmax",
        scale: float = 1.0,
    ) -> Buffer:
        """A route to given experts, with shares as of `route`. logits: [n_tokens, n_experts],
        experts: [n_tokens, n_used], their numbers -> [n_tokens, 2 * n_used]"""
        return self._emit(
            "route_to",
            [logits, experts],
            None,
            n_used=experts.width,
            normalized=normalized,
            gating=gating,
            scale=scale,
        )

    def expert_linear(self, x: Buffer, route: Buffer, weight: Weight) -> Buffer:
        """x @ weight[e].T for each expert e of a token's route. weight: [n_experts, n, k]

        x: [n_tokens, k], or [n_tokens, n_used * k] with one for each expert
        -> [n_tokens, n_used * n]
        """
        return self._emit(
            "expert_linear",
            [x, route],
            None,
            [weight],
            n_used=route.width // 2,
            shared=x.width == weight.shape[-1],
            activations=self._activations,
        )

    def expert_bias(
        self, x: Buffer, route: Buffer, weight: Weight, *, out: Buffer | None = None
    ) -> Buffer:
        """x plus weight[e] for each expert e of a token's route. x: [n_tokens, n_used * n],
        weight: [n_experts, n]"""
        return self._emit("expert_bias", [x, route], out, [weight], n_used=route.width // 2)

    def expert_scale(
        self, x: Buffer, route: Buffer, weight: Weight, *, out: Buffer | None = None
    ) -> Buffer:
        """x times weight[e] for each expert e of a token's route. x: [n_tokens, n_used * n],
        weight: [n_experts]"""
        return self._emit("expert_scale", [x, route], out, [weight], n_used=route.width // 2)

    def scale_shares(self, route: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """The route with the share of each expert e multiplied by weight[e]. weight:
        [n_experts]"""
        return self._emit("scale_shares", [route], out, [weight], n_used=route.width // 2)

    def expert_sum(self, x: Buffer, route: Buffer) -> Buffer:
        """The sum of the experts' outputs, weighted by their shares. [n_tokens, n_used * n] ->
        [n_tokens, n]"""
        return self._emit("expert_sum", [x, route], None, n_used=route.width // 2)
