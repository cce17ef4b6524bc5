/* What a listener sees and does: one trial after another, and nothing to answer before everything was heard. */

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map(each => [each.id, each]));
const NAMES = { R: "Reference", A: "A", B: "B", C: "This voice", X: "X" };
const ENOUGH = 0.9;
/** Milliseconds between a clip's end and the next clip. */
const PAUSE = 450;
let seats = [], current = null, waiting = 0, since = 0;

/** An element with attributes and children; strings become text nodes, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* ---- the three states of the page ---- */

function show(name) {
  for (const each of ["welcome", "trial", "thanks"]) part[each].hidden = each !== name;
  part[name].querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
  const done = ballot.votes.length, all = queue.length;
  part.progress.value = done / all;
  part.place.textContent = name === "trial" ? `${done + 1} of ${all}` : "";
}

function welcome() {
  const done = ballot.votes.length, clips = page.trials.find(trial => trial.reference);
  const parts = page.kinds.length > 1 ? ` in ${page.kinds.length} parts` : "";
  part.what.textContent = done
    ? `Welcome back. You have answered ${done} of ${queue.length} questions.`
    : `You will hear short clips of speech and answer ${queue.length} questions${parts}, in about ${page.minutes} `
      + `minute${page.minutes > 1 ? "s" : ""}.`;
  part.begin.textContent = done ? `Go on with question ${done + 1}` : "Begin";
  part.volume.hidden = !clips;
  part.name.value = ballot.listener.name ?? "";
  part.headphones.value = ballot.listener.headphones ?? "";
  seats = clips ? [{ clip: clips.reference, plays: 0, heard: false }] : [];
  show("welcome");
  keep();
  if (!keeping) part.said.textContent = "This browser keeps nothing for this page: answer all questions in one go.";
}

function start(event) {
  event.preventDefault();
  ballot.listener = { name: part.name.value.trim(), headphones: part.headphones.value };
  ballot.started ||= new Date().toISOString();
  keep();
  ask();
}

function ask() {
  release();
  const trial = queue[ballot.votes.length];
  if (!trial) return thank();
  const kind = kindOf(trial), clips = dealt(ballot.rater, trial);
  part.new.textContent = queue[ballot.votes.length - 1]?.kind === trial.kind ? "\u00a0" : "A new question";
  part.asked.textContent = kind.asked;
  part.note.textContent = kind.note;
  part.text.textContent = trial.text;
  part.text.hidden = !trial.text;
  seats = [...kind.seats].map((seat, place) => makeSeat(seat, place, clips[place]));
  part.seats.replaceChildren(...seats.map(seat => seat.element));
  part.answers.replaceChildren(part.answers.querySelector("legend"), ...makeAnswers(kind.answers));
  part.answers.className = kind.answers.length > 3 ? "scale" : "choice";
  part.keys.replaceChildren(...[...kind.seats].map(seat => make("kbd", {}, seat.toLowerCase())), " play");
  part.last.textContent = kind.answers.length;
  since = performance.now();
  show("trial");
  mark();
}

function thank() {
  part.votes.value = handedIn();
  part.another.hidden = true;
  part.said.textContent = "";
  show("thanks");
}

/* ---- one trial ---- */

function makeSeat(letter, place, clip) {
  const button = make("button", { type: "button", class: "disc" }, make("b", {}, letter === "C" ? "?" : letter));
  const state = make("span", { class: "state" });
  const element = make("div", { class: `seat ${letter === "R" ? "reference" : ""}` }, button,
    make("span", { class: "label" }, NAMES[letter].slice(1) && NAMES[letter]), state);
  button.addEventListener("click", () => toggle(place));
  return { letter, clip, button, state, element, plays: 0, heard: false };
}

/** Buttons with the value above its meaning, where there is a scale, and with the words alone where there is none. */
function makeAnswers(answers) {
  const scale = answers.length > 3, signed = answers.some(([value]) => value < 0);
  return answers.map(([value, label], place) => {
    const input = make("input", { type: "radio", name: "answer", value });
    input.addEventListener("change", mark);
    const number = value.replace("-", "−").padStart(signed && value > 0 ? 2 : 1, "+");
    return make("label", {}, input, make("b", {}, scale ? number : label), ...(scale ? [make("span", {}, label)] : []),
      ...(scale && !signed ? [] : [make("kbd", { "aria-hidden": true }, String(place + 1))]));
  });
}

function chosen() {
  return part.answers.querySelector("input:checked")?.value ?? null;
}

/** Show what plays, what was heard, and what is still to do. */
function mark() {
  for (const seat of seats.filter(seat => seat.element)) {
    const playing = seat === current && !player.paused;
    seat.element.classList.toggle("playing", playing);
    seat.element.classList.toggle("heard", seat.heard);
    seat.element.style.setProperty("--progress", seat === current && player.duration
      ? player.currentTime / player.duration : 0);
    seat.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${NAMES[seat.letter]}`);
    seat.state.textContent = seat.heard ? "heard" : playing ? "playing" : "";
  }
  const all = seats.every(seat => seat.heard);
  part.answers.disabled = !all;
  part.next.disabled = !all || chosen() === null;
  part.hint.textContent = !all ? "Listen to every clip first." : chosen() === null ? "Choose an answer." : "";
}

function answer(event) {
  event?.preventDefault();
  if (part.next.disabled) return;
  const seconds = Math.round((performance.now() - since) / 100) / 10;
  vote(chosen(), seats.map(seat => seat.plays), seconds);
  ask();
}

/* ---- playing: one player for the whole page ---- */

function toggle(place) {
  clearTimeout(waiting);
  if (seats[place] === current && !player.paused) return player.pause();
  if (seats[place] !== current || player.ended) play(seats[place]);
  else sound();
}

function play(seat) {
  part.said.textContent = "";
  if (seat !== current) player.src = page.clips[seat.clip];
  current = seat;
  player.currentTime = 0;
  seat.plays++;
  sound();
}

function sound() {
  player.play().catch(error => {
    // changing the clip while it loads aborts the older request, which is what was wanted
    if (error.name !== "AbortError") part.said.textContent = `This browser cannot play the clip: ${error.message}`;
  });
}

function release() {
  clearTimeout(waiting);
  player.pause();
  current = null;
}

function follow() {
  if (!current) return;
  if (player.duration && player.currentTime > ENOUGH * player.duration) current.heard = true;
  mark();
  if (!player.paused) requestAnimationFrame(follow);
}

/** What has not been heard follows by itself, so that a trial takes one touch. */
function ended() {
  if (!current) return;
  current.heard = true;
  mark();
  const next = seats.find(seat => !seat.heard);
  if (next) waiting = setTimeout(() => play(next), PAUSE);
}

/* ---- the keyboard ---- */

function onKey(event) {
  if (part.trial.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const seat = seats.findIndex(each => each.letter === event.key.toUpperCase());
  const choice = part.answers.querySelectorAll("input")[event.key - 1];
  if (seat !== -1) toggle(seat);
  else if (choice && !part.answers.disabled) choice.click();
  else if (event.key === "Enter" && !event.target.closest("button")) answer();
  else if (event.key === " " && !event.target.closest("button"))
    toggle(current && !player.paused ? seats.indexOf(current) : Math.max(0, seats.findIndex(each => !each.heard)));
  else return;
  event.preventDefault();
}

/* ---- handing in ---- */

function save() {
  const address = URL.createObjectURL(new Blob([part.votes.value], { type: "application/json" }));
  make("a", { href: address, download: `votes-${page.test}-${ballot.rater}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  handed("Saved, usually to your downloads. Hand the file to whoever asked you.");
}

function copy() {
  part.votes.select();
  const failed = () => handed(document.execCommand("copy") ? "Copied." : "Select the text below and copy it.");
  if (!navigator.clipboard) return failed();
  navigator.clipboard.writeText(part.votes.value).then(() => handed("Copied."), failed);
}

function handed(text) {
  part.said.textContent = text;
  part.another.hidden = false;
}

const player = part.player;
player.addEventListener("play", follow);
player.addEventListener("pause", mark);
player.addEventListener("ended", ended);
part.welcome.addEventListener("submit", start);
part.trial.addEventListener("submit", answer);
part.volume.addEventListener("click", () => toggle(0));
part.save.addEventListener("click", save);
part.copy.addEventListener("click", copy);
part.another.addEventListener("click", () => { begin(); welcome(); });
document.addEventListener("keydown", onKey);
ballot.votes.length === queue.length ? thank() : welcome();
