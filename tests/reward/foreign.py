"""Generated replies and verdicts as no service and no verifier should give them: every number, text, size and shape."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from cluster.core.types import Verdict

NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "0.5",
        "1e300",
        "-1.7976931348623157e308",
        "1e308",
        "1e309",
        "-1e999",
        "5e-324",
        "-0.0",
    ),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "true",
        "false",
        "null",
        '"1"',
        '"NaN"',
        "01",
        "+1",
        "1_0",
        "0x10",
        "1e",
    ),
    *("1" + "0" * 400, "-" + "9" * 401, "1" + "0" * 5000),
)
TEXTS = (
    *(
        "",
        "7",
        "correct",
        "incorrect",
        "error",
        "limit",
        "right",
        "wrong",
        "perhaps",
        "CORRECT",
        "x" * 5000,
    ),
    *(
        "\ud83d",
        "\ude00\ud83d",
        "a\ud800b",
        "\0",
        "\x1b[2J\x1b]0;title\x07",
        "\r\n\t",
        "\x7f\x85\x9b",
        "\u2028\u2029",
    ),
    *(
        "\u202e",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        "😀" * 3000,
        "`" * 500,
        "</script><b>",
        "e\u0301" * 2500,
        "{{ 7 }}",
    ),
)
KEYS = ("reward", "outcome", "answer", "reason", "score", "", "\ud800", "__class__")


class Foreign:
    """The generator. The same seed gives the same cases."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bodies(self, count: int) -> Iterator[bytes]:
        """Yield bodies of replies of a service."""
        for _ in range(count):
            yield self._damaged(self._object().encode("utf-8", "surrogatepass"))

    def frames(self, count: int) -> Iterator[bytes]:
        """Yield bodies of replies of a verifier process."""
        for _ in range(count):
            entries = ", ".join(self._entry() for _ in range(self._random.randrange(4)))
            done, children = (self._random.choice(["true", "false", self._json(1)]) for _ in range(2))
            more = self._random.choice(["", "", "", f', "more": {self._json(1)}'])
            reply = f'{{"verdicts": [{entries}], "done": {done}, "children": {children}{more}}}'
            yield self._damaged(reply.encode("utf-8", "surrogatepass"))

    def verdicts(self, count: int) -> Iterator[Any]:
        """Yield what a verifier may return."""
        for _ in range(count):
            parts = (
                self._value("outcome"),
                self._value("reward"),
                self._value("answer"),
                self._value("reason"),
            )
            yield Verdict(*parts) if self._random.random() < 0.9 else parts[1]

    def _value(self, key: str) -> Any:
        text = self._of_key(key)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return self._random.choice(
                [10**400, -(10**5000), float("nan"), b"bytes", object(), [], {}, 1j, text]
            )

    def _entry(self) -> str:
        index = self._random.choice(["0", "1", "2", "-1", "3", "true", "0.0", self._json(1)])
        parts = [index, *(self._of_key(key) for key in ("outcome", "reward", "answer", "reason"))]
        if self._random.random() < 0.05:
            del parts[self._random.randrange(len(parts))]
        return f"[{', '.join(parts)}]" if self._random.random() < 0.95 else self._json(2)

    def _object(self) -> str:
        keys = [key for key in KEYS[:4] if self._random.random() < 0.7]
        if self._random.random() < 0.2:
            keys.append(self._random.choice(KEYS))
        return f"{{{', '.join(f'{json.dumps(key)}: {self._of_key(key)}' for key in keys)}}}"

    def _of_key(self, key: str) -> str:
        """Return JSON that often fits the key."""
        usual = {
            "reward": NUMBERS[:7],
            "outcome": [json.dumps(text) for text in TEXTS[2:6]],
            "answer": [self._string(), "null"],
            "reason": [self._string()],
        }
        return (
            self._random.choice(usual[key]) if key in usual and self._random.random() < 0.8 else self._json(3)
        )

    def _string(self) -> str:
        text = "".join(self._random.choices(TEXTS, k=self._random.choice([1, 1, 1, 2, 3])))
        return json.dumps(text, ensure_ascii=self._random.random() < 0.5)

    def _json(self, depth: int) -> str:
        kind = self._random.randrange(5 if depth else 2)
        if kind == 0:
            return self._random.choice(NUMBERS)
        if kind == 1:
            return self._string()
        if kind == 2:
            return f"[{', '.join(self._json(depth - 1) for _ in range(self._random.randrange(4)))}]"
        if kind == 3:
            return f"{{{json.dumps(self._random.choice(KEYS))}: {self._json(depth - 1)}}}"
        nested = self._random.choice([10, 900, 1100, 50_000])
        return self._random.choice(
            ["[" * nested, "[" * nested + "]" * nested, '{"a":' * nested + "1" + "}" * nested]
        )

    def _damaged(self, body: bytes) -> bytes:
        """Return `body`, and in one of eight cases with a damage of the bytes."""
        at = self._random.randrange(len(body))
        match self._random.randrange(24):
            case 0:
                return body[:at]
            case 1:
                return body[:at] + self._random.randbytes(self._random.randrange(1, 9)) + body[at:]
            case 2:
                return self._random.choice(
                    [b"", b"\xff\xfe", b"\xef\xbb\xbf" + body, body + body, b"null", b"[]", b'""']
                )
        return body
