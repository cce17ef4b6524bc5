/* The response of one listener: the order of trials, what this browser stores of it, and the file at the end.
   page.js shows it, analysis.py reads the file. */

const STORED = `listening test ${page.test}`;
let storing = true;
let response = stored() ?? newResponse();
let queue = inOrder(response.rater);
if (response.answers.length > queue.length || !response.answers.every((answer, index) => answer?.trial === queue[index].id))
  begin();

/** CRC-32 of ASCII text. */
function crc32(text) {
  let crc = ~0;
  for (let index = 0; index < text.length; index++) {
    crc ^= text.charCodeAt(index);
    for (let bit = 0; bit < 8; bit++) crc = crc >>> 1 ^ (0xEDB88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}

/** A number of 32 bits that depends on the listener. */
function hash(rater, text) {
  let number = crc32(`${page.test} ${rater} ${text}`);
  for (const [shift, factor] of [[16, 0x85EBCA6B], [13, 0xC2B2AE35], [16, 1]])
    number = Math.imul(number ^ number >>> shift, factor) >>> 0;
  return number;
}

/** All trials, one test type after the other. */
function inOrder(rater) {
  const rank = trial => hash(rater, `order ${trial.id}`);
  return page.types.flatMap(({ type }) => page.trials.filter(trial => trial.type === type)
    .sort((one, other) => rank(one) - rank(other)));
}

/** The clips of a trial in the order of this listener: A and B, or the one that is rated. */
function inSides(rater, trial) {
  return hash(rater, `side ${trial.id}`) % 2 ? [...trial.clips].reverse() : trial.clips;
}

function typeOf(trial) {
  return page.types.find(({ type }) => type === trial.type);
}

function newResponse() {
  const rater = [...crypto.getRandomValues(new Uint32Array(2))].map(part => part.toString(16).padStart(8, "0")).join("");
  return { rater, started: "", finished: "", listener: {}, answers: [] };
}

function begin() {
  response = newResponse();
  queue = inOrder(response.rater);
  store();
}

/** What this browser stored, null where that is nothing, or nothing of use. */
function stored() {
  try {
    const value = JSON.parse(localStorage.getItem(STORED));
    if (!/^[0-9a-f]{16}$/.test(value?.rater) || !Array.isArray(value.answers)) return null;
    return Object.fromEntries(Object.entries(newResponse()).map(([name, empty]) => [name, value[name] ?? empty]));
  } catch {
    return null; // storage is denied, or holds something else
  }
}

function store() {
  try {
    localStorage.setItem(STORED, JSON.stringify(response));
  } catch {
    storing = false;
  }
}

function addAnswer(answer, plays, seconds) {
  const trial = queue[response.answers.length];
  response.answers.push({ trial: trial.id, clips: inSides(response.rater, trial), answer, plays, seconds });
  if (response.answers.length === queue.length) response.finished = new Date().toISOString();
  store();
}

/** JSON in ASCII with sorted names: the same text wherever it is written, so that it has one digest. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value && typeof value === "object")
    return `{${Object.keys(value).sort().map(name => `${canonical(name)}:${canonical(value[name])}`).join(",")}}`;
  return JSON.stringify(value).replace(/[^ -~]/g, char => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The file that is handed in; its digest reveals accidental edits, it is no protection against cheating. */
function responseFile() {
  const content = { test: page.test, ...response };
  return canonical({ ...content, digest: crc32(canonical(content)).toString(16).padStart(8, "0") });
}
