"""The sizes of an LLM that arithmetic and plans need. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dimensions:
    """The sizes of an LLM that arithmetic needs.

    Attributes
    ----------
    intermediate_size : int
        Width of the gated MLP that one token goes through: with experts, their width times how many are active.
    num_experts : int
        Experts that a router scores for each token; 0: none.
    """

    hidden_size: int
    intermediate_size: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int = 0

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys, or all values, of a token."""
        return self.kv_heads * self.head_dim

    @property
    def token_macs(self) -> int:
        """MACs of one layer per token, attention between tokens apart."""
        projections = 2 * self.hidden_size * (self.query_width + self.kv_width)
        return projections + self.hidden_size * (3 * self.intermediate_size + self.num_experts)
