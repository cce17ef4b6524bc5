/* What is on the page: its parts are drawn from the data, and listening.js makes them act. */

const page = JSON.parse(document.getElementById("data").textContent);
const [tools, filter, column, arm, direction, grid, player, said] =
  ["tools", "filter", "column", "arm", "direction", "grid", "player", "said"].map(id => document.getElementById(id));
const MADE = ["seconds", "wall_seconds", "takes"];
const everyClip = page.sentences.flatMap(sentence => sentence.clips);
const rows = page.sentences.map(makeRow);
const allSeeds = inOrder(rows.flatMap(row => row.seeds));
const everySwitch = makeSwitch(allSeeds, "Seed of every sentence", seed => choose(rows, seed), 0);

/** An element with attributes and children; strings become text nodes, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The seeds of a sentence one can switch between: those of its arms that have several clips. */
function seedsOf(clips) {
  const others = clip => clips.some(other => other !== clip && other.arm === clip.arm);
  return inOrder(clips.filter(clip => clip.seed !== null && others(clip)).map(clip => clip.seed));
}

function inOrder(seeds) {
  return [...new Set(seeds)].sort((one, other) => one - other);
}

function label(name) {
  return name === "wall_seconds" ? "seconds to make" : name.replaceAll("_", " ");
}

/** A number of a column: whole where the whole column is, else with two decimals. */
function shown(value, place) {
  if (value === null) return "–";
  const whole = Number.isInteger(value) && everyClip.every(clip => Number.isInteger(clip.figures[place] ?? 0));
  return value.toFixed(whole ? 0 : 2);
}

function mean(values) {
  const known = values.filter(value => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function figure(clip, name) {
  return clip.figures[page.columns.indexOf(name)] ?? null;
}

function makeHead() {
  const first = make("th", { role: "columnheader", scope: "col" }, "sentence");
  const names = make("tr", { role: "row", class: "names" }, first);
  const meanings = make("tr", { role: "row", class: "meanings" }, make("td", { role: "gridcell" }));
  for (const { name, meaning } of page.arms) {
    names.append(make("th", { role: "columnheader", scope: "col", title: meaning }, name));
    meanings.append(make("td", { role: "gridcell" }, make("b", { "aria-hidden": true }, `${name} `), meaning));
  }
  return make("thead", { role: "rowgroup" }, names, meanings);
}

/** Below the sentences: what every arm comes to, over all its clips. */
function makeFoot() {
  const ofArm = page.arms.map(({ name }) => everyClip.filter(clip => clip.arm === name));
  const foot = make("tfoot", { role: "rowgroup" });
  page.columns.forEach((name, place) => {
    const means = ofArm.map(clips => mean(clips.map(clip => clip.figures[place])));
    foot.append(makeTotal(`mean ${label(name)}`, means.map(value => shown(value, place))));
  });
  const ended = ofArm.map(clips => clips.filter(clip => clip.ended_with_eos !== null));
  const limits = ended.map(clips => clips.length && `${clips.filter(clip => !clip.ended_with_eos).length} of ${clips.length}`);
  if (limits.some(Boolean)) foot.append(makeTotal("ran to the limit", limits.map(text => text || "–")));
  return foot;
}

function makeTotal(name, values) {
  return make("tr", { role: "row" }, make("th", { role: "rowheader", scope: "row" }, name),
    ...values.map((value, place) => make("td", { role: "gridcell" }, makeArmName(page.arms[place].name), value)));
}

/** Seen where the columns are folded away, on a phone. */
function makeArmName(name) {
  return make("span", { class: "arm", "aria-hidden": true }, name);
}

function makeFigure(name, value) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, value));
}

function makeRow(sentence) {
  const seeds = seedsOf(sentence.clips);
  const row = { sentence, seeds, seed: seeds[0] ?? null, cells: [] };
  row.switch = makeSwitch(seeds, `Seed of sentence ${sentence.number}`, seed => choose([row], seed), -1);
  row.element = make("tr", { role: "row", class: "sentence" }, make("th", { role: "rowheader", scope: "row" },
    make("span", { class: "number" }, String(sentence.number)), make("p", { dir: "auto" }, sentence.text), row.switch));
  for (const { name } of page.arms) {
    const cell = { row, arm: name, clip: null, element: make("td", { role: "gridcell" }) };
    row.cells.push(cell);
    row.element.append(cell.element);
    fill(cell);
  }
  return row;
}

function makeSwitch(seeds, name, chosen, tabindex) {
  const group = make("span", { class: "seeds", role: "group", "aria-label": name }, "seed");
  group.hidden = !seeds.length;
  seeds.forEach((seed, place) => {
    const button = make("button", { type: "button", tabindex, "aria-label": `seed ${seed}` }, seed);
    button.setAttribute("aria-pressed", place === 0);
    button.addEventListener("click", () => chosen(seed));
    group.append(button);
  });
  return group;
}

/** The clip of the row's seed, or the arm's only clip where it has just one. */
function clipOf(cell) {
  const clips = cell.row.sentence.clips.filter(clip => clip.arm === cell.arm);
  return clips.length === 1 ? clips[0] : clips.find(clip => clip.seed === cell.row.seed) ?? null;
}

function fill(cell) {
  const clip = cell.clip = clipOf(cell);
  cell.button = null;
  cell.element.replaceChildren(makeArmName(cell.arm), ...(clip?.sound ? makePlayer(cell) : [makeAbsence(cell)]));
  cell.target = cell.element.querySelector(".target");
  cell.target.addEventListener("focus", () => makeTabbable(cell));
}

function makeAbsence({ clip }) {
  const reason = clip === null ? "no clip" : clip.problem;
  return make("span", { class: "absence target", tabindex: -1 }, reason);
}

function makePlayer(cell) {
  const picture = make("div", { class: "picture", "aria-hidden": true });
  picture.style.setProperty("--picture", `url("${cell.clip.picture}")`);
  picture.addEventListener("click", event => {
    const box = picture.getBoundingClientRect();
    play(cell, (event.clientX - box.left) / box.width);
  });
  const button = make("button", { type: "button", class: "play target", tabindex: -1 });
  button.addEventListener("click", () => toggle(cell));
  cell.button = button;
  const time = cell.time = make("span", { class: "time" });
  mark(cell);
  return [picture, make("div", { class: "controls" }, button, time), makeFigures(cell.clip, cell.row)];
}

/** Every judged figure, known or not, so that a measure stands on one line in all cells; then what is out of order. */
function makeFigures(clip, row) {
  const list = make("dl", { class: "figures" });
  page.columns.forEach((name, place) => {
    if (!MADE.includes(name)) list.append(makeFigure(label(name), shown(clip.figures[place], place)));
  });
  if (figure(clip, "takes") > 1) list.append(makeFigure("takes", figure(clip, "takes")));
  if (row.seeds.length && clip.seed !== null && clip.seed !== row.seed) list.append(makeFigure("seed", clip.seed));
  if (clip.ended_with_eos === false) list.append(make("dt", { class: "warning" }, "ran to the limit"));
  return list;
}

/* ---- putting it together ---- */

function offer(select, first, names) {
  select.append(make("option", { value: "" }, first));
  names.forEach((name, place) => select.append(make("option", { value: place }, name)));
}

offer(column, "sentence", page.columns.map(label));
offer(arm, "all arms", page.arms.map(each => each.name));
grid.append(makeHead(), make("tbody", { role: "rowgroup" }, ...rows.map(row => row.element)), makeFoot());
grid.style.setProperty("--arms", page.arms.length);
tools.insertBefore(everySwitch, document.getElementById("count"));
tools.hidden = false;
tools.addEventListener("submit", event => event.preventDefault());
filter.addEventListener("input", applyFilter);
filter.addEventListener("keydown", clearFilter);
for (const select of [column, arm]) select.addEventListener("change", applySort);
direction.addEventListener("click", turn);
document.addEventListener("keydown", onKey);
for (const name of ["play", "pause", "seeked", "loadedmetadata"]) player.addEventListener(name, follow);
player.addEventListener("ended", release);
applySort();
applyFilter();
