/* The grid: a row for each sentence, a column for each step, one player for all. */

const { steps, sentences } = JSON.parse(document.getElementById("data").textContent);
const [grid, player, said] = ["grid", "player", "said"].map(id => document.getElementById(id));
/** The button whose clip is in the player, and the sounds of all buttons. */
let current = null;
const sounds = new Map();

/** An element with attributes and children; strings become text nodes, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function makeHead() {
  const names = steps.map(({ name, chosen, figures }) => make("th", { scope: "col", class: chosen ? "kept" : "" },
    make("b", {}, name), chosen ? " kept" : "", ...figures.map(figure => make("span", {}, figure))));
  return make("thead", {}, make("tr", {}, make("td"), ...names));
}

function makeRow({ number, text, clips }) {
  const first = make("th", { scope: "row" }, make("span", { class: "number" }, String(number)), make("p", { dir: "auto" }, text));
  const cells = clips.map((clip, place) => make("td", { class: steps[place].chosen ? "kept" : "" },
    ...(clip ? makeCell(clip, `${steps[place].name}, sentence ${number}`) : ["no clip"])));
  return make("tr", {}, first, ...cells);
}

function makeCell(clip, name) {
  const figures = make("span", { class: "figures" }, clip.figures);
  if (!clip.sound) return [make("em", {}, clip.problem), figures];
  const button = make("button", { type: "button", "aria-label": `Play ${name}` });
  sounds.set(button, clip.sound);
  button.addEventListener("click", () => toggle(button));
  const heard = clip.right ? [] : [make("q", { dir: "auto", title: "what was heard" }, clip.heard)];
  const limit = clip.ended ? [] : [make("span", { class: "warning" }, "ran to the limit")];
  return [button, ...heard, figures, ...limit];
}

function toggle(button) {
  if (button === current && !player.paused) return player.pause();
  if (button !== current) {
    const past = current;
    current = button;
    player.src = sounds.get(button);
    if (past) mark(past);
  }
  said.textContent = "";
  player.play().catch(error => {
    // a pause before the first sound is no failure
    if (error.name !== "AbortError") said.textContent = `This clip cannot be played: ${error.message}`;
  });
}

function mark(button) {
  const playing = button === current && !player.paused && !player.ended;
  button.classList.toggle("playing", playing);
  button.setAttribute("aria-label", button.ariaLabel.replace(/^\w+/, playing ? "Pause" : "Play"));
}

/** From the focused player to the next that there is in a direction. */
function move(event) {
  const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
  let cell = document.activeElement.closest("td");
  if (across === undefined || !cell) return;
  event.preventDefault();
  const rows = [...grid.tBodies[0].rows];
  let [row, column] = [rows.indexOf(cell.parentElement), cell.cellIndex];
  do {
    [row, column] = [row + down, column + across];
    cell = rows[row]?.cells[column];
  } while (cell && !cell.querySelector("button"));
  cell?.querySelector("button")?.focus();
}

for (const event of ["play", "pause", "ended"]) player.addEventListener(event, () => current && mark(current));
grid.addEventListener("keydown", move);
grid.append(makeHead(), make("tbody", {}, ...sentences.map(makeRow)));
