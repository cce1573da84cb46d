"""The questions in words. The wording is ours; what it says is what the published questions say."""

from __future__ import annotations

from collections.abc import Sequence

from reward.tasks.telelogs.causes import CAUSES
from reward.tasks.telelogs.options import Option

# Every character that a compact question can hold. The answer's tags are apart.
COMPACT_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789- \n"
ANSWER_TAGS = ("\\boxed{", "}")

_BY_LABEL = {cause.label: cause for cause in CAUSES}

_FULL = """\
Below are the user-plane data of a 5G drive test and the engineering parameters of the cells around the road. \
In a section of the road the downlink throughput drops below 600 Mbps. Which of these {count} root causes is the most \
likely reason for the drop?

{options}

How to read the data:
- A digital tilt of 255 is the default and means 6 degrees; any other value is the digital downtilt in degrees. The \
downtilt of a cell is its mechanical downtilt plus its digital downtilt.
- The beam scenario decides the vertical beamwidth: 6 degrees for DEFAULT and SCENARIO_1 to SCENARIO_5, 12 degrees for \
SCENARIO_6 to SCENARIO_11, 25 degrees from SCENARIO_12 on.
- Azimuths are clockwise from north, downtilts below the horizon. The direction of a cell is its mechanical plus its \
digital azimuth. All cells use the same frequency and 273 resource blocks; cells with the same gNodeB ID stand at the \
same site, and a cell ID is the gNodeB ID and the number of the cell within it.
- The drive test has one row per second, and its values are means over that second: the serving cell's SS-RSRP and \
SS-SINR, the downlink throughput of the MAC layer, and the number of resource blocks that were scheduled per slot. \
Neighbours are listed from the strongest to the weakest, first their PCIs, \
then in the same order the RSRP of their best beams. A minus sign alone means that a value is missing.

Drive test:

{drive}

Engineering parameters:

{cells}

Reason step by step, then give the label of exactly one cause, the most likely one, in \\boxed{{}}."""

_COMPACT_HINT = """\
A 5G test drive has a throughput below 600 Mbps. Find the root cause, one of: {options}.
The first table lists cells: PCI, site, distance in m, height in m, downtilt and vertical beamwidth in degrees. \
The second lists seconds: speed in km/h, serving PCI and its RSRP in dBm, throughput in Mbps, three neighbours as PCI \
and RSRP, scheduled resource blocks.

{tables}
Give the label of exactly one cause in \\boxed{{}}."""


def full_question(options: Sequence[Option], drive: str, cells: str) -> str:
    listed = "\n".join(f"{option.printed}: {_BY_LABEL[option.cause].sentence}" for option in options)
    return _FULL.format(count=len(options), options=listed, drive=drive, cells=cells)


def compact_question(options: Sequence[Option], drive: str, cells: str) -> str:
    """For character-level models: `C1 tilt C2 far …`, then the cells, then the drive, each with its name above."""
    listed = " ".join(f"{option.printed} {_BY_LABEL[option.cause].word}" for option in options)
    return f"{listed}\ncells\n{cells}\ndrive\n{drive}\n"


def compact_chat_question(options: Sequence[Option], drive: str, cells: str) -> str:
    """The same tables for small instruct models, with words that say what is in them."""
    listed = ", ".join(f"{option.printed} {_BY_LABEL[option.cause].word}" for option in options)
    return _COMPACT_HINT.format(options=listed, tables=f"cells\n{cells}\ndrive\n{drive}\n")
