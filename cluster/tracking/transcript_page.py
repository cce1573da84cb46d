"""Sampled responses as one HTML page that needs nothing but a browser.

What a model wrote is not to be trusted. It goes through `_text`, which leaves no markup and nothing invisible, and the
page forbids scripts and everything from elsewhere (`Content-Security-Policy`); it has none of its own.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from cluster.contracts import Response, ScoredGroup, Verdict
from cluster.tracking.transcripts import MARKS, choose

SHOWN_CHARACTERS = 20_000
_SHOWN_IN_SUMMARY = 100

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: .4rem 0;
  padding: .6rem .8rem; border-radius: .4rem; background: color-mix(in srgb, currentColor 7%, transparent); }}
article {{ border-left: .3rem solid gray; padding-left: .8rem; margin: 1rem 0; }}
article.right {{ border-color: seagreen; }}
article.wrong {{ border-color: firebrick; }}
article.error, article.timeout {{ border-color: darkorange; }}
section {{ margin: 2rem 0; }}
h2 {{ font-size: 1.1rem; }}
.said {{ opacity: .75; }}
label {{ margin-right: 1rem; }}
{filters}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{counts}</p>
{switches}
<main>
{prompts}
</main>
</body>
</html>
"""


def transcript_page(
    title: str, groups: Sequence[ScoredGroup], category_of: Callable[[Any], str | None], responses: int
) -> str:
    """The page: per prompt what was asked, how many of its responses are right, and up to three of them, unlike ones
    first. `responses` at most in all."""
    chosen = choose(groups, responses)
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    counted = (
        f"{sum(v.outcome == outcome for v in verdicts)} {outcome}"
        for outcome in MARKS
        if any(v.outcome == outcome for v in verdicts)
    )
    shown = sum(len(pairs) for _, pairs in chosen)
    return _PAGE.format(
        title=_text(title),
        counts=f"{', '.join(counted)}; {shown} of {len(verdicts)} responses to {len(groups)} prompts are shown",
        switches="".join(_switch(name) for name in ("all", *MARKS)),
        filters="\n".join(
            f"#show-{name}:checked ~ main article:not(.{name}) {{ display: none; }}" for name in MARKS
        ),
        prompts="\n".join(_prompt(group, pairs, category_of) for group, pairs in chosen),
    )


def _switch(name: str) -> str:
    checked = " checked" if name == "all" else ""
    return (
        f'<input type="radio" name="show" id="show-{name}"{checked}><label for="show-{name}">{name}</label>\n'
    )


def _prompt(
    group: ScoredGroup, pairs: Sequence[tuple[Response, Verdict]], category_of: Callable[[Any], str | None]
) -> str:
    category = category_of(group.prompt.problem)
    kind = "" if category is None else f" · {_text(category)}"
    begins = " ".join(group.prompt.text.split())[:_SHOWN_IN_SUMMARY]
    return (
        f"<section>\n<h2>{_text(group.prompt.id)}{kind} · {group.right} of {len(group.verdicts)} right</h2>\n"
        f"<details><summary>{_text(begins)}…</summary><pre>{_text(group.prompt.text)}</pre></details>\n"
        + "".join(_response(response, verdict) for response, verdict in pairs)
        + "</section>"
    )


def _response(response: Response, verdict: Verdict) -> str:
    tokens = f"{len(response.token_ids)} tokens" + (", cut off" if response.finish_reason == "length" else "")
    answer = "" if verdict.answer is None else f" · answer: {_text(verdict.answer)}"
    reason = f" · {_text(verdict.reason)}" if verdict.reason else ""
    return (
        f'<article class="{verdict.outcome}">\n<b>{MARKS[verdict.outcome]}</b> · reward {verdict.reward:g} · {tokens}'
        f'<span class="said">{answer}{reason}</span>\n<pre>{_text(response.text)}</pre>\n</article>\n'
    )


def _text(text: str) -> str:
    """As HTML for a reader: markup is text, and what cannot be seen, or turns the line around, is written out."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}\n[… {len(text) - SHOWN_CHARACTERS} more characters]"
    return html.escape("".join(_visible(character) for character in text), quote=True)


def _visible(character: str) -> str:
    """Control and format characters, and halves of surrogate pairs, by their number."""
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    return f"\\u{ord(character):04x}"
