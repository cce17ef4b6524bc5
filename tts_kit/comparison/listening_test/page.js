/* What a listener sees and does: one trial after another, with nothing to answer before everything was played. */

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id, element]));
const NAMES = { R: "Reference", A: "A", B: "B", C: "This voice" };
const HEARD_SHARE = 0.9;
/** Milliseconds between a clip's end and the next clip. */
const PAUSE = 450;
let slots = [], nextClip = 0, shownAt = 0;

const player = new Player({ show: mark, report: text => { ui.message.textContent = text; }, ended });

/* ---- the three states of the page ---- */

function show(name) {
  for (const state of ["welcome", "trial", "thanks"]) ui[state].hidden = state !== name;
  ui[name].querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
  const done = response.answers.length, all = queue.length;
  ui.progress.value = done / all;
  ui.position.textContent = name === "trial" ? `${done + 1} of ${all}` : "";
}

function welcome() {
  const done = response.answers.length, sample = page.trials.find(trial => trial.reference);
  const parts = page.types.length > 1 ? ` in ${page.types.length} parts` : "";
  ui.what.textContent = done
    ? `Welcome back. You have answered ${done} of ${queue.length} questions.`
    : `You will hear short clips of speech and answer ${queue.length} questions${parts}, in about ${page.minutes} `
      + `minute${page.minutes > 1 ? "s" : ""}.`;
  ui.begin.textContent = done ? `Go on with question ${done + 1}` : "Begin";
  ui.volume.hidden = !sample;
  ui.name.value = response.listener.name ?? "";
  ui.headphones.value = response.listener.headphones ?? "";
  slots = sample ? [{ sound: page.clips[sample.reference], plays: 0, heard: false }] : [];
  show("welcome");
  store();
  if (!storing) ui.message.textContent = "This browser stores nothing for this page: answer all questions in one go.";
}

function start(event) {
  event.preventDefault();
  response.listener = { name: ui.name.value.trim(), headphones: ui.headphones.value };
  response.started ||= new Date().toISOString();
  store();
  ask();
}

function ask() {
  stop();
  const trial = queue[response.answers.length];
  if (!trial) return thank();
  const type = typeOf(trial), sides = inSides(response.rater, trial);
  const clips = { R: trial.reference, A: sides[0], B: sides.at(-1), C: sides[0] };
  ui.new.textContent = queue[response.answers.length - 1]?.type === trial.type ? "\u00a0" : "A new question";
  ui.question.textContent = type.question;
  ui.note.textContent = type.note;
  ui.text.textContent = trial.text;
  ui.text.hidden = !trial.text;
  slots = [...type.slots].map(letter => makeSlot(letter, clips[letter]));
  ui.slots.replaceChildren(...slots.map(slot => slot.element));
  ui.answers.replaceChildren(ui.answers.querySelector("legend"), ...makeAnswers(type.answers));
  ui.answers.className = type.answers.length > 3 ? "scale" : "choice";
  ui.keys.replaceChildren(...[...type.slots].map(letter => make("kbd", {}, letter.toLowerCase())), " play");
  ui.last.textContent = type.answers.length;
  shownAt = performance.now();
  show("trial");
  mark();
}

function thank() {
  ui.file.value = responseFile();
  ui.another.hidden = true;
  ui.message.textContent = "";
  show("thanks");
}

/* ---- one trial ---- */

function makeSlot(letter, clip) {
  const button = make("button", { type: "button", class: "disc" }, make("b", {}, letter === "C" ? "?" : letter));
  const state = make("span", { class: "state" });
  const element = make("div", { class: `slot ${letter === "R" ? "reference" : ""}` }, button,
    make("span", { class: "label" }, NAMES[letter].slice(1) && NAMES[letter]), state);
  const slot = { letter, clip, sound: page.clips[clip], button, state, element, plays: 0, heard: false };
  button.addEventListener("click", () => toggle(slot));
  return slot;
}

/** Buttons with the value above its meaning, where there is a scale, and with the words alone where there is none. */
function makeAnswers(answers) {
  const scale = answers.length > 3, signed = answers.some(([value]) => value < 0);
  return answers.map(([value, label], index) => {
    const input = make("input", { type: "radio", name: "answer", value });
    input.addEventListener("change", () => mark());
    const number = value.replace("-", "−").padStart(signed && value > 0 ? 2 : 1, "+");
    return make("label", {}, input, make("b", {}, scale ? number : label), ...(scale ? [make("span", {}, label)] : []),
      ...(scale && !signed ? [] : [make("kbd", { "aria-hidden": true }, String(index + 1))]));
  });
}

function chosen() {
  return ui.answers.querySelector("input:checked")?.value ?? null;
}

/** Show what plays, what was heard, and what is still to do. */
function mark() {
  for (const slot of slots) {
    if (player.progress(slot) > HEARD_SHARE) slot.heard = true;
    if (!slot.element) continue;
    const playing = player.isPlaying(slot);
    slot.element.classList.toggle("playing", playing);
    slot.element.classList.toggle("heard", slot.heard);
    slot.element.style.setProperty("--progress", player.progress(slot));
    slot.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${NAMES[slot.letter]}`);
    slot.state.textContent = slot.heard ? "heard" : playing ? "playing" : "";
  }
  const all = slots.every(slot => slot.heard);
  ui.answers.disabled = !all;
  ui.next.disabled = !all || chosen() === null;
  ui.hint.textContent = !all ? "Listen to every clip first." : chosen() === null ? "Choose an answer." : "";
}

function answer(event) {
  event?.preventDefault();
  if (ui.next.disabled) return;
  addAnswer(chosen(), slots.map(slot => slot.plays), Math.round((performance.now() - shownAt) / 100) / 10);
  ask();
}

/* ---- playing ---- */

function toggle(slot) {
  clearTimeout(nextClip);
  if (slot === player.clip) player.toggle(slot);
  else play(slot);
}

function play(slot) {
  slot.plays++;
  player.play(slot);
}

function stop() {
  clearTimeout(nextClip);
  player.stop();
}

/** The next clip that was not heard follows by itself, so that a trial takes one touch. */
function ended(slot) {
  slot.heard = true;
  mark();
  const next = slots.find(other => !other.heard);
  if (next) nextClip = setTimeout(() => play(next), PAUSE);
}

/* ---- the keyboard ---- */

function onKey(event) {
  if (ui.trial.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const slot = slots.find(({ letter }) => letter === event.key.toUpperCase());
  const choice = ui.answers.querySelectorAll("input")[event.key - 1];
  if (slot) toggle(slot);
  else if (choice && !ui.answers.disabled) choice.click();
  else if (event.key === "Enter" && !event.target.closest("button")) answer();
  else if (event.key === " " && !event.target.closest("button"))
    toggle(slots.find(other => player.isPlaying(other)) ?? slots.find(other => !other.heard) ?? slots[0]);
  else return;
  event.preventDefault();
}

/* ---- handing in ---- */

function save() {
  const address = URL.createObjectURL(new Blob([ui.file.value], { type: "application/json" }));
  make("a", { href: address, download: `responses-${page.test}-${response.rater}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  handedIn("Saved, usually to your downloads. Hand the file to whoever asked you.");
}

function copy() {
  ui.file.select();
  const fallback = () => handedIn(document.execCommand("copy") ? "Copied." : "Select the text below and copy it.");
  if (!navigator.clipboard) return fallback();
  navigator.clipboard.writeText(ui.file.value).then(() => handedIn("Copied."), fallback);
}

function handedIn(text) {
  ui.message.textContent = text;
  ui.another.hidden = false;
}

ui.welcome.addEventListener("submit", start);
ui.trial.addEventListener("submit", answer);
ui.volume.addEventListener("click", () => toggle(slots[0]));
ui.save.addEventListener("click", save);
ui.copy.addEventListener("click", copy);
ui.another.addEventListener("click", () => { begin(); welcome(); });
document.addEventListener("keydown", onKey);
response.answers.length === queue.length ? thank() : welcome();
