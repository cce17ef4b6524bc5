"""The review: a person listens to the clips of a run on a local page and corrects their texts, the most doubtful first.

Every edit is appended to a history on disk before it is confirmed, and the state is what the history adds up to: a killed
process loses nothing, and undo takes back the last edit. The server listens on this machine only and answers only requests
with the token in its URL; started again, it has the same URL, and a page that is still open goes on."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import audio, html, text
from tts_kit.data import quality_flags, segment, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.errors import KitError
from tts_kit.io import explain_os_errors

HISTORY = "review.jsonl"  # the edits, each with the digest of the segments that it is about
SESSION = "review_session.json"  # token and port of the last server
NEW, CHECKED, DROPPED = "new", "checked", "dropped"
MIN_SPLIT_SECONDS = 0.3
MAX_CHARACTERS = 2000
MAX_BODY_BYTES = 100_000


@dataclass(frozen=True)
class Span:
    """A part of a clip's file."""
    file: str  # relative to the folder of segmented recordings
    start: float
    end: float


@dataclass(frozen=True)
class ReviewClip:
    """One clip under review."""
    id: str
    recording: str
    spans: tuple[Span, ...]
    text: str
    transcript: str  # what the ASR model wrote
    second: str = ""  # what the second one wrote, if that differs
    flags: tuple[quality_flags.Flag, ...] = ()
    state: str = NEW

    @property
    def seconds(self) -> float:
        return sum(span.end - span.start for span in self.spans)

    @property
    def score(self) -> float:
        """How doubtful its flags make it, 0 to 1."""
        return quality_flags.combined_score(self.flags)


class ReviewStore:
    """All clips of a run, in the order of the recordings; safe for several threads and browser tabs."""

    def __init__(self, folder: Path, asr_model: str, verify_asr_model: str = ""):
        self.folder = Path(folder)
        self._original = _read_clips(self.folder, asr_model, verify_asr_model)
        self._segments = {recording.name: hashlib.sha256((recording / segment.SEGMENTS).read_bytes()).hexdigest()[:16]
                          for recording in segment.segment_folders(self.folder)}
        self._lock = threading.Lock()
        self._size = -1
        self._reload()

    @property
    def clips(self) -> list[ReviewClip]:
        with self._lock:
            self._reload()
            return list(self._clips.values())

    def summary(self) -> str:
        """How many clips were reviewed, and what to do about the others."""
        states = [clip.state for clip in self.clips]
        reviewed = len(states) - states.count(NEW)
        return f"{reviewed} of {len(states)} clips were reviewed." + (
            " The others keep the text that Whisper wrote: nothing waits for the review. Go on with it, then run this and "
            "what follows again." * (reviewed < len(states)))

    def edit(self, request: dict) -> list[ReviewClip]:
        """Apply one edit and write it to disk; returns the clips that it changed or added."""
        with self._lock:
            self._reload()
            if not isinstance(request, dict):
                raise KitError("the request is no edit. Reload the page.")
            if request.get("action") == "undo":
                edit = {"action": "undo"}
            else:
                apply(self._clips, request)  # refuses what is no edit
                edit = request | {"segments": self._segments[_recording(request)]}
            before, path = self._clips, self.folder / HISTORY
            with explain_os_errors(path), open(path, "ab") as file:
                file.write(json.dumps(edit, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._reload()
            return [clip for clip in self._clips.values() if before.get(clip.id) != clip]

    def read_audio(self, id: str) -> np.ndarray:
        """(samples,) at 24 kHz of a clip."""
        with self._lock:
            spans = _find(self._clips, id).spans
        return self.read_spans(spans)

    def read_spans(self, spans: Sequence[Span]) -> np.ndarray:
        """(samples,) at 24 kHz of several spans in a row."""
        return np.concatenate([audio.read(self.folder / span.file, SAMPLE_RATE)
                               [round(span.start * SAMPLE_RATE):round(span.end * SAMPLE_RATE)] for span in spans])

    def _reload(self) -> None:
        """Read the history if another store changed it; half a line that a killed process left is cut off."""
        path = self.folder / HISTORY
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        content = path.read_bytes() if size else b""
        complete = content[:content.rfind(b"\n") + 1]
        if len(complete) != len(content):
            os.truncate(path, len(complete))
        edits = [json.loads(line) for line in complete.splitlines()]
        changed = {_recording(edit) for edit in edits if edit.get("segments") != self._segments.get(_recording(edit))}
        if changed:
            raise KitError(f"{path} is about other clips than {max(changed)} holds now. Move it away to begin again.")
        self._clips, self._size = replay(self._original, edits), len(complete)


def replay(clips: dict[str, ReviewClip], edits: list[dict]) -> dict[str, ReviewClip]:
    """The clips after a history of edits; an undo takes back the last one that stands."""
    standing: list[dict] = []
    for edit in edits:
        if edit["action"] != "undo":
            standing.append(edit)
        elif standing:
            standing.pop()
    return functools.reduce(apply, standing, clips)


def apply(clips: dict[str, ReviewClip], edit: dict) -> dict[str, ReviewClip]:
    """The clips after one edit, which comes from a browser and can hold anything; the order stays."""
    clip = _find(clips, edit.get("id"))
    match edit.get("action"):
        case "text":
            state = CHECKED if edit.get("checked", True) is True else clip.state
            new = [dataclasses.replace(clip, text=_valid_text(edit.get("text")), state=state)]
        case "check" if not clip.text:
            raise KitError(f"{clip.id} has no text yet. Write what is said, or drop it.")
        case "check" | "drop" | "restore" as action:
            new = [dataclasses.replace(clip, state={"check": CHECKED, "drop": DROPPED, "restore": NEW}[action])]
        case "split":
            new = _split(clip, edit.get("at"), edit.get("texts"))
        case "merge":
            new = [_merge(clips, clip, _find(clips, edit.get("other")))]
        case action:
            raise KitError(f"{str(action)[:60]!r} is no edit. Reload the page.")
    after: dict[str, ReviewClip] = {}
    for id, unchanged in clips.items():
        if id == clip.id:
            after |= {changed.id: changed for changed in new}
        elif edit["action"] != "merge" or id != edit["other"]:
            after[id] = unchanged
    return after


def _find(clips: dict[str, ReviewClip], id: object) -> ReviewClip:
    if not isinstance(id, str) or id not in clips:
        raise KitError(f"there is no clip {str(id)[:60]!r} any more: it was split or merged elsewhere. Reload the page.")
    return clips[id]


def _split(clip: ReviewClip, at: object, texts: object) -> list[ReviewClip]:
    """The two halves of a clip, before and after `at` seconds."""
    if not isinstance(at, int | float) or not MIN_SPLIT_SECONDS <= at <= clip.seconds - MIN_SPLIT_SECONDS:
        raise KitError(f"{clip.id}: a split leaves at least {MIN_SPLIT_SECONDS:g} s on each side. Click into the waveform, "
                       "where the second half begins.")
    if not isinstance(texts, list) or len(texts) != 2:
        raise KitError("wanted two texts, one for each half. Reload the page.")
    before, after, passed = [], [], 0.0
    for span in clip.spans:
        border = span.start + at - passed
        passed += span.end - span.start
        if border > span.start:
            before.append(dataclasses.replace(span, end=min(span.end, border)))
        if border < span.end:
            after.append(dataclasses.replace(span, start=max(span.start, border)))
    return [dataclasses.replace(clip, id=f"{clip.id}{letter}", spans=tuple(spans), text=_valid_text(text), second="")
            for letter, spans, text in zip("ab", (before, after), texts)]


def _merge(clips: dict[str, ReviewClip], clip: ReviewClip, other: ReviewClip) -> ReviewClip:
    order = list(clips)
    if order.index(other.id) != order.index(clip.id) + 1 or other.recording != clip.recording:
        raise KitError(f"{other.id} does not follow {clip.id} in the recording; only neighbours can be merged.")
    return dataclasses.replace(clip, spans=clip.spans + other.spans, text=f"{clip.text} {other.text}".strip(), state=NEW,
                               transcript=f"{clip.transcript} {other.transcript}",
                               second=f"{clip.second or clip.transcript} {other.second or other.transcript}"
                               if clip.second or other.second else "", flags=clip.flags + other.flags)


def _recording(edit: dict) -> str:
    """The recording that an edit is about, which its clip's id begins with; empty for an undo."""
    return edit.get("id", "").partition("/")[0]


def _valid_text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        raise KitError(f"wanted a text of at most {MAX_CHARACTERS} characters. Shorten it.")
    return text.normalize(value)


def _read_clips(folder: Path, asr_model: str, verify_asr_model: str) -> dict[str, ReviewClip]:
    """The clips as they were cut and transcribed, with their flags."""
    clips, features = [], []
    for recording in segment.segment_folders(folder):
        first = transcribe.read_transcripts(recording, asr_model)
        second = transcribe.read_transcripts(recording, verify_asr_model)
        embeddings = speaker_embedding.read_embeddings(recording)
        for part in segment.read_clips(recording):
            if part.file not in first:
                raise KitError(f"{recording / part.file} has no transcript yet. Run tts-kit prepare again, which goes on.")
            transcript = first[part.file]
            span = Span(f"{recording.name}/{part.file}", 0.0, round(part.seconds, 3))
            second_text = second[part.file].text if part.file in second else None
            differs = second_text and quality_flags.words(second_text) != quality_flags.words(transcript.text)
            clips.append(ReviewClip(f"{recording.name}/{Path(part.file).stem}", recording.name, (span,), transcript.text,
                                    transcript.original_text, second_text if differs else ""))
            features.append((part, transcript, second_text, embeddings.get(part.file)))
    flags = quality_flags.flag_clips(features)
    return {clip.id: dataclasses.replace(clip, flags=tuple(clip_flags)) for clip, clip_flags in zip(clips, flags)}


def serve(store: ReviewStore, name: str, port: int = 0):
    """Start a server of the review page, until its `close`."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from tts_kit import local_server

    def clips(request) -> Response:
        return JSONResponse([clip_json(clip) for clip in store.clips])

    def clip_audio(request) -> Response:
        content = audio.encode(store.read_audio(request.query_params.get("id", "")), SAMPLE_RATE, "wav")
        return Response(content, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    async def edit(request) -> Response:
        body = await local_server.read_body(request, MAX_BODY_BYTES)
        try:
            changed = await run_in_threadpool(store.edit, json.loads(body))
        except ValueError as error:
            raise KitError("the request is no JSON. Reload the page.") from error
        return JSONResponse({"changed": [clip_json(clip) for clip in changed], "order": [clip.id for clip in store.clips]})

    page = html.page(__file__, f"Review: {name}", ["review.js"],
                     csp=("connect-src 'self'", "media-src blob:", "img-src data:"))
    routes = [Route("/clips", clips), Route("/audio", clip_audio), Route("/edit", edit, methods=["POST"])]
    token, last_port = _last_session(store.folder)
    try:
        server = local_server.PageServer(page, routes, token, port or last_port)
    except KitError:
        if port:
            raise
        server = local_server.PageServer(page, routes, token)  # another program has the port now
    path = store.folder / SESSION
    with explain_os_errors(path), open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"token": token, "port": server.port}, file)
    return server


def _last_session(folder: Path) -> tuple[str, int]:
    """Token and port of the last server of these clips, or a new token and any port."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads((folder / SESSION).read_bytes())
        if re.fullmatch(r"[\w-]{32}", saved["token"]) and 0 < int(saved["port"]) < 2 ** 16:
            return saved["token"], int(saved["port"])
    return secrets.token_urlsafe(24), 0


def clip_json(clip: ReviewClip) -> dict:
    """A clip as the page gets it, without any path of this machine."""
    return {"id": clip.id, "recording": clip.recording, "seconds": round(clip.seconds, 2), "text": clip.text,
            "transcript": clip.transcript, "second": clip.second, "state": clip.state, "score": round(clip.score, 3),
            "flags": [flag.reason for flag in clip.flags]}
