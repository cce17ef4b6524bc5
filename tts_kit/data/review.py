"""The review: a person listens to the clips of a run on a local page and corrects their texts, the most doubtful first.

Every edit is appended to a history on disk before it is confirmed, and the state is what the history adds up to: a killed
process loses nothing, undo takes back the last edit, and an edit made on an outdated state is refused. The server listens on
this machine only and answers only requests with the token in its URL.
"""

import dataclasses
import hashlib
import io
import json
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tts_kit import audio, colab, html, text
from tts_kit.data import quality_flags, segment, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.quality_flags import Flag
from tts_kit.errors import KitError
from tts_kit.io import explain_os_errors

HISTORY = "review.jsonl"  # the edits, each with the digest of the segments that it is about
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
    flags: tuple[Flag, ...] = ()
    state: str = NEW
    revision: int = 0  # number of the last edit that changed it

    @property
    def seconds(self) -> float:
        return sum(span.end - span.start for span in self.spans)

    @property
    def score(self) -> float:
        """How doubtful its flags make it, 0 to 1."""
        return quality_flags.combined_score(self.flags)


class EditConflict(KitError):
    """An edit was made on an outdated state of its clip; `current` is the clip as it is now, None if it is gone."""

    def __init__(self, message: str, current: ReviewClip | None = None):
        super().__init__(message)
        self.current = current


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

    def edit(self, request: dict) -> list[ReviewClip]:
        """Validate one edit, write it to disk and apply it; returns the clips that it changed or added."""
        with self._lock:
            self._reload()
            edit = validate(request, self._clips)
            if "id" in edit:
                edit["segments"] = self._segments[_recording(edit)]
            before, path = self._clips, self.folder / HISTORY
            with explain_os_errors(path), open(path, "ab") as file:
                file.write(json.dumps(edit, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._reload()
            return [clip for clip in self._clips.values() if before.get(clip.id) != clip]

    def read_audio(self, id: str) -> np.ndarray:
        """(samples,) at 24 kHz of a clip."""
        for clip in self.clips:
            if clip.id == id:
                return self.read_spans(clip.spans)
        raise KitError(f"there is no clip {id!r}. Reload the page.")

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


def replay(original: dict[str, ReviewClip], edits: list[dict]) -> dict[str, ReviewClip]:
    """The clips after a history of edits."""
    standing: list[int] = []
    undone: dict[str, int] = {}
    for number, edit in enumerate(edits, 1):
        if edit["action"] != "undo":
            standing.append(number)
        elif standing:
            taken_back = edits[standing.pop() - 1]
            undone |= dict.fromkeys((taken_back["id"], taken_back.get("other", taken_back["id"])), number)
    clips = dict(original)
    for number in standing:
        clips = _apply(clips, edits[number - 1], number)
    for id, number in undone.items():  # an undo is a change as well: a page that did not see it is outdated
        if id in clips and clips[id].revision < number:
            clips[id] = dataclasses.replace(clips[id], revision=number)
    return clips


def validate(request: dict, clips: dict[str, ReviewClip]) -> dict:
    """The edit as the history keeps it; requests come from a browser and can hold anything."""
    if not isinstance(request, dict):
        raise KitError("the request is no edit. Reload the page.")
    if request.get("action") == "undo":
        return {"action": "undo"}
    clip = _current(request, "id", "revision", clips)
    edit = {"action": request.get("action"), "id": clip.id}
    match edit["action"]:
        case "text":
            return edit | {"text": _valid_text(request.get("text")), "checked": request.get("checked", True) is True}
        case "check" | "drop" | "restore":
            if edit["action"] == "check" and not clip.text:
                raise KitError(f"{clip.id} has no text yet. Write what is said, or drop it.")
            return edit
        case "split":
            at, texts = request.get("at"), request.get("texts")
            if not isinstance(at, int | float) or not MIN_SPLIT_SECONDS <= at <= clip.seconds - MIN_SPLIT_SECONDS:
                raise KitError(f"{clip.id}: a split leaves at least {MIN_SPLIT_SECONDS:g} s on each side. Move the cursor.")
            if not isinstance(texts, list) or len(texts) != 2:
                raise KitError("wanted two texts, one for each half. Reload the page.")
            return edit | {"at": round(float(at), 3), "texts": [_valid_text(half) for half in texts]}
        case "merge":
            other = _current(request, "other", "other_revision", clips)
            order = list(clips)
            if order.index(other.id) != order.index(clip.id) + 1 or other.recording != clip.recording:
                raise KitError(f"{other.id} does not follow {clip.id} in the recording; only neighbours can be merged.")
            return edit | {"other": other.id}
    raise KitError(f"{str(edit['action'])[:60]!r} is no edit. Reload the page.")


def _apply(clips: dict[str, ReviewClip], edit: dict, number: int) -> dict[str, ReviewClip]:
    """The clips after one edit; the order stays, halves replace the clip that was split."""
    clip = clips[edit["id"]]
    match edit["action"]:
        case "text":
            state = CHECKED if edit["checked"] else clip.state
            new = [dataclasses.replace(clip, text=edit["text"], state=state, revision=number)]
        case "check" | "drop" | "restore":
            state = {"check": CHECKED, "drop": DROPPED, "restore": NEW}[edit["action"]]
            new = [dataclasses.replace(clip, state=state, revision=number)]
        case "split":
            new = [dataclasses.replace(clip, id=f"{clip.id}{letter}", spans=spans, text=half_text, revision=number)
                   for letter, spans, half_text in zip("ab", _split_spans(clip.spans, edit["at"]), edit["texts"])]
        case "merge":
            other = clips[edit["other"]]
            new = [dataclasses.replace(clip, spans=clip.spans + other.spans, text=f"{clip.text} {other.text}".strip(),
                                       transcript=f"{clip.transcript} {other.transcript}", flags=clip.flags + other.flags,
                                       state=NEW, revision=number)]
    after: dict[str, ReviewClip] = {}
    for id, unchanged in clips.items():
        if id == clip.id:
            after |= {changed.id: changed for changed in new}
        elif id != edit.get("other"):
            after[id] = unchanged
    return after


def _split_spans(spans: tuple[Span, ...], at: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The spans before and after `at` seconds."""
    before, after, passed = [], [], 0.0
    for span in spans:
        border = span.start + at - passed
        passed += span.end - span.start
        if border > span.start:
            before.append(dataclasses.replace(span, end=min(span.end, border)))
        if border < span.end:
            after.append(dataclasses.replace(span, start=max(span.start, border)))
    return tuple(before), tuple(after)


def _recording(edit: dict) -> str:
    """The recording that an edit is about, which its clip's id begins with; empty for an undo."""
    return edit.get("id", "").partition("/")[0]


def _current(request: dict, id_key: str, revision_key: str, clips: dict[str, ReviewClip]) -> ReviewClip:
    """The clip that an edit names, if the editor saw its current revision."""
    id = request.get(id_key)
    clip = clips.get(id) if isinstance(id, str) else None
    if clip is None:
        raise EditConflict(f"there is no clip {str(id)[:60]!r} any more: it was split or merged elsewhere.")
    if request.get(revision_key) != clip.revision:
        raise EditConflict(f"{clip.id} was changed elsewhere in the meantime. Its text now: {clip.text}", clip)
    return clip


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
            clips.append(ReviewClip(f"{recording.name}/{Path(part.file).stem}", recording.name, (span,), transcript.text,
                                    transcript.original_text))
            second_text = second[part.file].text if part.file in second else None
            features.append((part, transcript, second_text, embeddings.get(part.file)))
    flags = quality_flags.flag_clips(features)
    return {clip.id: dataclasses.replace(clip, flags=tuple(clip_flags)) for clip, clip_flags in zip(clips, flags)}


# The page


class Review:
    """A running review server: open `url`, end it with `close`."""

    def __init__(self, store: ReviewStore, name: str, port: int = 0):
        try:
            from tts_kit import local_server
        except ImportError as error:
            raise KitError('the review page needs uvicorn and starlette: pip install "tts-kit[audio]"') from error
        self.token = secrets.token_urlsafe(24)
        bound_socket = local_server.listen(local_server.LOCALHOST, port)
        self.server = local_server.LocalServer(app(store, self.token, f"Review: {name}"), bound_socket,
                                               timeout_graceful_shutdown=2)
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/?token={self.token}"

    def close(self) -> None:
        self.server.close()

    def show(self, height: int = 720):
        """The page inside a notebook."""
        return colab.embed_iframe(self.server.port, f"/?token={self.token}", height)


def app(store: ReviewStore, token: str, title: str):
    """The page and its API as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from tts_kit import local_server

    def check_token(given: str | None) -> None:
        if not secrets.compare_digest((given or "").encode(), token.encode()):
            raise _WrongToken("Wrong token: open the address that the review printed.")

    def index(request) -> Response:
        check_token(request.query_params.get("token"))
        return local_server.page_response(*page(title))

    def clips(request) -> Response:
        check_token(request.headers.get("x-token"))
        return JSONResponse([clip_json(clip) for clip in store.clips])

    def clip_audio(request) -> Response:
        check_token(request.headers.get("x-token"))
        buffer = io.BytesIO()
        samples = store.read_audio(request.query_params.get("id", ""))
        soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return Response(buffer.getvalue(), media_type="audio/wav", headers={"Cache-Control": "no-store"})

    async def edit(request) -> Response:
        check_token(request.headers.get("x-token"))
        body = await local_server.read_body(request, MAX_BODY_BYTES)
        try:
            changed = await run_in_threadpool(store.edit, json.loads(body))
        except ValueError as error:
            raise KitError("the request is no JSON. Reload the page.") from error
        return JSONResponse({"changed": [clip_json(clip) for clip in changed], "order": [clip.id for clip in store.clips]})

    def explain(_request, error: KitError) -> Response:
        if isinstance(error, EditConflict):
            return JSONResponse({"error": str(error), "current": error.current and clip_json(error.current)}, 409)
        return JSONResponse({"error": str(error)}, 403 if isinstance(error, _WrongToken) else 400)

    return Starlette(routes=[Route("/", index), Route("/clips", clips), Route("/audio", clip_audio),
                             Route("/edit", edit, methods=["POST"])], exception_handlers={KitError: explain})


def page(title: str) -> tuple[str, str]:
    """The page and its Content-Security-Policy, which allows its own script and nothing else."""
    return html.page(__file__, title, ["review.js"], csp=("connect-src 'self'", "media-src blob:", "img-src data:"))


def clip_json(clip: ReviewClip) -> dict:
    """A clip as the page gets it, without any path of this machine."""
    return {"id": clip.id, "recording": clip.recording, "seconds": round(clip.seconds, 2), "text": clip.text,
            "transcript": clip.transcript, "state": clip.state, "revision": clip.revision, "score": round(clip.score, 3),
            "flags": [flag.reason for flag in clip.flags]}


class _WrongToken(KitError):
    pass
