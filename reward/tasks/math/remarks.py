"""Remove what answers say about themselves: where a maximum is attained, what a letter denotes, `if and only if`."""

from __future__ import annotations

import re

_TEXT = r"(?:\\text\s*\{\s*)?"
_ATTAINED = re.compile(
    rf"\s*[,;(]?\s*{_TEXT}[,;(]?\s*(?:with\s+|and\s+(?:it\s+)?is\s+)?"
    r"(?:equality|attained|achieved|reached|occurring|which (?:is (?:attained|achieved|reached)|occurs))\b.*$"
)
_WHERE = re.compile(rf"\s*[,;(]?\s*{_TEXT}[,;(]?\s*\bwhere\b\s*(?P<said>.+)$")
_DENOTES = re.compile(
    r"^(?:[A-Za-z](?:_\{?\w+\}?)?\s+(?:is|denotes|represents|stands for) (?:the|a|an|its) [A-Za-z ]+"
    r"|(?:[a-z]\s*=\s*[A-Z]{2}(?:\s*(?:,|and|,\s*and)\s*)?)+)$"
)
_SAYS_MORE = re.compile(r"constant|integer|real|arbitrary|number|parameter|positive|natural|solution|root")
_CONDITION = re.compile(
    rf"^(?P<mark>{_TEXT})(?:[A-Za-z][A-Za-z ,']*\s)?(?:if and only if|iff)\b\s*(?P<closed>\}}?)\s*(?=\S)"
)
_BOTH = re.compile(r"^(?:\\text\s*\{\s*both\s*\}|both\b)\s*(?=.*\band\b)")
_POINT = re.compile(r"^(?:\\text\s*\{\s*point\s*\}|point)\s+(?=[A-Z]$)", re.IGNORECASE)
_THAT_IS = re.compile(r"^(?:\\text\s*\{\s*)?all [A-Za-z\d ]+,?\s*\bi\.\s*e\.,?\s*\}?\s*(?=\S)", re.IGNORECASE)


def without_remarks(text: str) -> str:
    """Return an answer without such remarks. What says which values a letter takes is no remark and stays."""
    text = _ATTAINED.sub("", text) or text
    if (found := _WHERE.search(text)) and found.start() and _is_remark(found["said"]):
        text = text[: found.start()]
    if found := _CONDITION.match(text):
        rest = text[found.end() :]
        text = rest.removesuffix("}") if found["mark"] and not found["closed"] else rest
    return _POINT.sub("", _BOTH.sub("", _THAT_IS.sub("", text)))


def _is_remark(said: str) -> bool:
    plain = re.sub(r"\\text\s*\{([^{}]*)\}?|[{}$]", r"\1", said)
    plain = re.sub(r"\s+", " ", plain).strip(" .)")
    return bool(_DENOTES.match(plain)) and not _SAYS_MORE.search(plain)
