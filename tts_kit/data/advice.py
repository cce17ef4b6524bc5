"""Whether a dataset is enough, and what would help it most, in the words of one paragraph.

The minutes are what users of other kits report: from five a voice is heard, three hundred clips make it steady, and beyond
forty minutes little is gained.
"""

import statistics
from collections.abc import Sequence

from tts_kit.data.audio_stats import AudioStats

HEARD, STEADY, PLENTY = 5, 25, 40
"""Minutes."""
QUIET, ROOMY = 30.0, 20.0
"""Decibels of the median clip between loud and quiet from which on a room is quiet, and under which it is loud."""
DULL = 7_000
"""Hertz of the median clip under which a voice sounds like a telephone."""
OFTEN = 0.05
"""Share of clips said twice from which on it is mentioned."""


def advise(clips: Sequence[AudioStats], strangers: int | None, twins: int) -> str:
    """The paragraph on all clips of a run; `strangers` of them sound like somebody else, None where nobody compared."""
    return " ".join(filter(None, (_amount(clips), _voice(strangers), _room(clips), _dullness(clips),
                                  _repetition(twins, len(clips)))))


def _amount(clips: Sequence[AudioStats]) -> str:
    minutes = sum(each.clip.seconds for each in clips) / 60
    more = max(1, round(STEADY - minutes))
    told = f"{minutes:.1f} minutes in {len(clips)} clips: "
    if minutes < HEARD:
        return (f"{told}little. Users of other kits begin to hear a voice at about {HEARD} minutes; cloning from one clip "
                f"may do as well. About {more} minutes more would make it steady.")
    if minutes < STEADY:
        return f"{told}enough to hear the voice; about {more} minutes more would make it steady."
    return f"{told}enough." + f" Beyond {PLENTY} minutes more brings little." * (minutes >= PLENTY)


def _voice(strangers: int | None) -> str:
    if strangers is None:
        return "Whether one voice speaks in all of them was not measured: that needs the judges."
    if not strangers:
        return "One voice speaks in all of them."
    return f"{strangers} of them sound{'s' * (strangers == 1)} like somebody else: listen to these first, below."


def _room(clips: Sequence[AudioStats]) -> str:
    usual = statistics.median(each.ratio for each in clips)
    if usual >= QUIET:
        return f"The room is quiet ({usual:.0f} dB under the voice)."
    kind = "can be heard" if usual >= ROOMY else "is loud"
    return f"The room {kind} ({usual:.0f} dB under the voice), and the model learns the room with the voice."


def _dullness(clips: Sequence[AudioStats]) -> str:
    usual = statistics.median(each.bandwidth_hz for each in clips)
    return f"There is nothing above {usual / 1000:.1f} kHz: use the original recording if there is one." * (usual < DULL)


def _repetition(twins: int, clips: int) -> str:
    return f"{twins} clips say nearly the same as another." * (twins > OFTEN * clips)
