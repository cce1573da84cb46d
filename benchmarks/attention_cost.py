"""Predict what a group of responses costs the learner, by ways of computing its attention. Nothing is measured.

    alone    every response with a copy of its prompt, causal attention without a mask
    mask     the prompt once, and attention with a dense mask between the responses
    split    the prompt once, and attention in three products without a mask (learner/model/split_attention.py)

The numbers are counts for one optimizer step on one group with the sizes of Qwen2.5-1.5B in bfloat16. FLOPs are those
of products of matrices, in forward and backward. Attention in backward counts 2.5 times its forward, because it
computes the scores again. Bytes are those of attention alone. `kept` is what one layer keeps for backward, including
the mask, which all layers share. `read` is what forward reads of keys, values and mask in all layers, in blocks of 128
queries and without caches.

    python benchmarks/attention_cost.py             # print the table
    python benchmarks/attention_cost.py --write     # also write it into docs/learner.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.marks import write_part

DOCUMENT = Path(__file__).parents[1] / "docs" / "learner.md"
MARKS = "<!-- benchmarks/attention_cost.py writes from here -->\n", "<!-- to here: attention_cost -->"
WAYS = ("alone", "mask", "split")
RESPONSES = 16
PROMPT_TOKENS = (512, 4096)
RESPONSE_TOKENS = (1024, 4096, 16384, 32768)
QUERY_BLOCK = 128
"""The queries that a kernel compares with a key while the key is in its fast memory."""
NUMBER_BYTES = 2
"""The size of a number in bfloat16."""
LSE_BYTES = 4
MASK_BYTES = 2 + 1
"""The size of an element of a mask to add, and of the boolean mask that it was made from."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model; the defaults are those of Qwen2.5-1.5B."""

    layers: int = 28
    hidden: int = 1536
    intermediate: int = 8960
    heads: int = 12
    key_heads: int = 2
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def layer_parameters(self) -> int:
        """The parameters of the products of matrices in one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.intermediate


@dataclass(frozen=True)
class Cost:
    """The cost of one way."""

    columns: int
    """The tokens that pass through the layers."""
    pairs: float
    """The pairs of a query and a key whose score is computed, per layer and head."""
    flops: float
    kept_bytes: float
    read_bytes: float


def costs(sizes: Sizes, prompt: int, responses: int, tokens: int) -> dict[str, Cost]:
    """Return the cost of each way for a prompt and the responses to it, by their tokens."""
    own = responses * tokens
    width = prompt + own
    columns = {"alone": responses * (prompt + tokens), "mask": width, "split": width}
    pairs = {
        "alone": responses * triangle(prompt + tokens),
        "mask": triangle(prompt) + own * width,
        "split": triangle(prompt) + own * prompt + responses * triangle(tokens),
    }
    masked = own * width  # of the last rows; the prompt needs no mask
    found = {}
    for way in WAYS:
        through_layers = 6 * sizes.layers * sizes.layer_parameters * columns[way]
        attention = 3.5 * 4 * sizes.layers * sizes.heads * sizes.head_dim * pairs[way]
        output_layer = 8 * sizes.vocabulary * sizes.hidden * own  # its logits are computed twice
        # Queries and output; keys and values, which a kernel with a mask needs once per head of queries.
        heads = 2 * sizes.heads + 2 * sizes.key_heads + (2 * sizes.heads if way == "mask" else 0)
        per_column = heads * sizes.head_dim * NUMBER_BYTES + sizes.heads * LSE_BYTES
        key_bytes = 2 * sizes.head_dim * NUMBER_BYTES / QUERY_BLOCK
        found[way] = Cost(
            columns=columns[way],
            pairs=pairs[way],
            flops=through_layers + attention + output_layer,
            kept_bytes=columns[way] * per_column + (MASK_BYTES * masked if way == "mask" else 0),
            read_bytes=sizes.layers
            * sizes.heads
            * (pairs[way] * key_bytes + (NUMBER_BYTES * masked if way == "mask" else 0)),
        )
    return found


def triangle(tokens: int) -> float:
    """Return the number of pairs in causal attention: each token with itself and with those before it."""
    return tokens * (tokens + 1) / 2


def table() -> str:
    """Return the costs of all lengths as a Markdown table."""
    return "\n".join(
        [
            "| prompt | response | PFLOP: alone | mask | split | alone / split | mask / split "
            "| GiB kept: alone | mask | split | TiB read: alone | mask | split |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *rows(),
            "",
        ]
    )


def rows() -> Iterator[str]:
    for prompt in PROMPT_TOKENS:
        for tokens in RESPONSE_TOKENS:
            found = costs(Sizes(), prompt, RESPONSES, tokens)
            alone, mask, split = (found[way] for way in WAYS)
            cells = [
                f"{prompt:,}",
                f"{tokens:,}",
                *(f"{cost.flops / 1e15:.3g}" for cost in (alone, mask, split)),
                f"{alone.flops / split.flops:.2f}",
                f"{mask.flops / split.flops:.2f}",
                *(f"{cost.kept_bytes / 2**30:.3g}" for cost in (alone, mask, split)),
                *(f"{cost.read_bytes / 2**40:.3g}" for cost in (alone, mask, split)),
            ]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/learner.md")
    write = parser.parse_args().write
    print(table())
    if write:
        write_part(DOCUMENT, MARKS, table())


if __name__ == "__main__":
    main()
