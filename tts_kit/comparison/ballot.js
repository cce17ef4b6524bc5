"use strict";

/* One listener's ballot: in which order the clips come, what this browser keeps of it, and what is handed in at the end.
   blind.js shows it. trials.py deals the same clips, and votes.py checks the same sum. */

const page = JSON.parse(document.getElementById("data").textContent);
const KEPT = `blind test ${page.test}`;
let keeping = true;
let ballot = kept() ?? fresh();
let queue = inOrder(ballot.rater);
if (ballot.votes.length > queue.length || !ballot.votes.every((vote, place) => vote?.trial === queue[place].id)) begin();

/** CRC-32 of a text of ASCII. */
function sum(text) {
  let crc = ~0;
  for (let place = 0; place < text.length; place++) {
    crc ^= text.charCodeAt(place);
    for (let bit = 0; bit < 8; bit++) crc = crc >>> 1 ^ (0xEDB88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}

/** A number of 32 bits that is this listener's own. */
function draw(rater, what) {
  let number = sum(`${page.test} ${rater} ${what}`);
  for (const [shift, factor] of [[16, 0x85EBCA6B], [13, 0xC2B2AE35], [16, 1]])
    number = Math.imul(number ^ number >>> shift, factor) >>> 0;
  return number;
}

/** All trials, part after part; a pair that comes twice comes half a part later again. */
function inOrder(rater) {
  const place = trial => (draw(rater, `place ${trial.pair}`) + trial.turned * 2 ** 31) % 2 ** 32;
  return page.kinds.flatMap(({ kind }) => page.trials.filter(trial => trial.kind === kind)
    .sort((one, other) => place(one) - place(other)));
}

/** The clips of a trial as this listener hears them, seat by seat. */
function dealt(rater, trial) {
  const turned = (draw(rater, `side ${trial.pair}`) + trial.turned) % 2;
  const clips = turned ? [...trial.clips].reverse() : trial.clips;
  const copied = trial.clips[draw(rater, `copy ${trial.pair}`) % clips.length];
  const seats = { R: trial.reference, A: clips[0], B: clips.at(-1), C: clips[0], X: copied };
  return [...kindOf(trial).seats].map(seat => seats[seat]);
}

function kindOf(trial) {
  return page.kinds.find(({ kind }) => kind === trial.kind);
}

function fresh() {
  const rater = [...crypto.getRandomValues(new Uint32Array(2))].map(part => part.toString(16).padStart(8, "0")).join("");
  return { rater, started: "", finished: "", listener: {}, votes: [] };
}

function begin() {
  ballot = fresh();
  queue = inOrder(ballot.rater);
  keep();
}

/** What was kept by this browser, null where that is nothing, or nothing of use. */
function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT));
    if (!/^[0-9a-f]{16}$/.test(found?.rater) || !Array.isArray(found.votes)) return null;
    return Object.fromEntries(Object.entries(fresh()).map(([name, empty]) => [name, found[name] ?? empty]));
  } catch {
    return null; // storage is denied, or somebody else wrote there
  }
}

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(ballot));
  } catch {
    keeping = false;
  }
}

function vote(answer, plays, seconds) {
  const trial = queue[ballot.votes.length];
  ballot.votes.push({ trial: trial.id, kind: trial.kind, clips: dealt(ballot.rater, trial), answer, plays, seconds });
  if (ballot.votes.length === queue.length) ballot.finished = new Date().toISOString();
  keep();
}

/** JSON in ASCII with sorted names: the same text wherever it is written, so that it can be summed. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value && typeof value === "object")
    return `{${Object.keys(value).sort().map(name => `${canonical(name)}:${canonical(value[name])}`).join(",")}}`;
  return JSON.stringify(value).replace(/[^ -~]/g, each => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The file that is handed in; its digest shows a slip of whoever edits it, it is no lock. */
function handedIn() {
  const votes = { test: page.test, ...ballot };
  return canonical({ ...votes, digest: sum(canonical(votes)).toString(16).padStart(8, "0") });
}
