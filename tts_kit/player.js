"use strict";

/* Shared by every page with clips: the page's data, elements, and one audio element, so that only one clip sounds at a time.
   The script of the page follows in the same element. The page needs JSON in #data and an audio element #player. */

const page = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes and children; strings become text nodes, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

class Player {
  /** `show(clip)` redraws a clip whose state may have changed, `report(text)` shows a problem ("" removes it), and
      `ended(clip)` is called after a clip has sounded to its end. A clip is any object with its address in `sound`. */
  constructor({ show, report, ended = () => {} }) {
    this.audio = document.getElementById("player");
    this.clip = null;
    Object.assign(this, { show, report });
    for (const name of ["play", "pause", "seeked", "loadedmetadata"]) this.audio.addEventListener(name, () => this.follow());
    this.audio.addEventListener("ended", () => {
      const clip = this.clip;
      this.stop();
      if (clip) ended(clip);
    });
  }

  isPlaying(clip) {
    return clip === this.clip && !this.audio.paused;
  }

  /** Seconds of a clip that have been played. */
  position(clip) {
    return clip === this.clip ? this.audio.currentTime : 0;
  }

  /** Share of a clip that has been played, 0 to 1. */
  progress(clip) {
    return clip === this.clip && this.audio.duration ? this.audio.currentTime / this.audio.duration : 0;
  }

  toggle(clip) {
    if (clip !== this.clip) this.play(clip);
    else if (this.audio.paused) this.resume();
    else this.audio.pause();
  }

  /** Play a clip from a share of its length on. */
  play(clip, fraction = 0) {
    this.report("");
    if (clip !== this.clip) {
      this.stop();
      this.clip = clip;
      this.audio.src = clip.sound;
    }
    const begin = () => { this.audio.currentTime = fraction * this.audio.duration; };
    if (this.audio.readyState >= HTMLMediaElement.HAVE_METADATA) begin();
    else this.audio.addEventListener("loadedmetadata", begin, { once: true });
    this.resume();
  }

  resume() {
    this.audio.play().catch(error => {
      // changing the clip while it loads aborts the older request, which is intended
      if (error.name !== "AbortError") this.report(`This browser cannot play the clip: ${error.message}`);
    });
  }

  seek(seconds) {
    this.audio.currentTime = Math.min(Math.max(this.audio.currentTime + seconds, 0), this.audio.duration || 0);
    if (this.clip) this.show(this.clip);
  }

  stop() {
    this.audio.pause();
    const clip = this.clip;
    this.clip = null;
    if (clip) this.show(clip);
  }

  /** Redraw the clip, and again with every frame while it sounds. */
  follow() {
    if (!this.clip) return;
    this.show(this.clip);
    if (!this.audio.paused) requestAnimationFrame(() => this.follow());
  }
}
