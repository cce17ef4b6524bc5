/* Sentences in rows, arms in columns, one player for all clips; drawn from the page's data. */

const SEEK_SECONDS = 0.5;
const [tools, filter, column, arm, direction, grid, problem, keep] =
  ["tools", "filter", "column", "arm", "direction", "grid", "problem", "keep"].map(id => document.getElementById(id));
const allClips = page.sentences.flatMap(sentence => sentence.clips);
/** The cells that play after the one that plays now. */
let queue = [];
const player = new Player({ show: drawState, report: text => { problem.textContent = text; },
  ended: () => { if (queue.length) start(queue.shift()); } });
const rows = page.sentences.map(makeRow);
const allSeeds = sortSeeds(rows.flatMap(row => row.seeds));
const globalSwitch = makeSwitch(allSeeds, "Seed of all sentences", seed => chooseSeed(rows, seed), 0);
let descending = false;

/* ---- the table ---- */

/** The seeds of a sentence to switch between: those of arms that have several clips. */
function seedsOf(clips) {
  const hasSiblings = clip => clips.some(other => other !== clip && other.arm === clip.arm);
  return sortSeeds(clips.filter(clip => clip.seed !== null && hasSiblings(clip)).map(clip => clip.seed));
}

function sortSeeds(seeds) {
  return [...new Set(seeds)].sort((one, other) => one - other);
}

/** A value of a column: an integer if the whole column holds integers, else with two decimals. */
function format(value, index) {
  if (value === null) return "–";
  const integers = Number.isInteger(value) && allClips.every(clip => Number.isInteger(clip.values[index] ?? 0));
  return value.toFixed(integers ? 0 : 2);
}

function mean(values) {
  const numbers = values.filter(value => value !== null);
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length : null;
}

function makeHead() {
  const names = make("tr", { role: "row", class: "names" }, make("th", { role: "columnheader", scope: "col" }, "sentence"));
  const meanings = make("tr", { role: "row", class: "meanings" }, make("td", { role: "gridcell" }));
  for (const { name, meaning } of page.arms) {
    names.append(make("th", { role: "columnheader", scope: "col", title: meaning }, name));
    meanings.append(make("td", { role: "gridcell" }, make("b", { "aria-hidden": true }, `${name} `), meaning));
  }
  return make("thead", { role: "rowgroup" }, names, meanings);
}

/** Below the sentences: the mean of every column for each arm, and its clips without an end-of-speech frame. */
function makeFoot() {
  const clipsByArm = page.arms.map(({ name }) => allClips.filter(clip => clip.arm === name));
  const foot = make("tfoot", { role: "rowgroup" });
  page.columns.forEach(({ heading }, index) => {
    const means = clipsByArm.map(clips => mean(clips.map(clip => clip.values[index])));
    foot.append(makeTotal(`mean ${heading}`, means.map(value => format(value, index))));
  });
  const generated = clipsByArm.map(clips => clips.filter(clip => clip.ended_with_eos !== null));
  const counts = generated.map(clips => clips.length && `${clips.filter(clip => !clip.ended_with_eos).length} of ${clips.length}`);
  if (counts.some(Boolean)) foot.append(makeTotal("no EOS", counts.map(text => text || "–")));
  return foot;
}

function makeTotal(name, values) {
  return make("tr", { role: "row" }, make("th", { role: "rowheader", scope: "row" }, name),
    ...values.map((value, index) => make("td", { role: "gridcell" }, makeArmName(page.arms[index].name), value)));
}

/** Seen where the columns are folded, on a phone. */
function makeArmName(name) {
  return make("span", { class: "arm", "aria-hidden": true }, name);
}

function makeRow(sentence) {
  const seeds = seedsOf(sentence.clips);
  const row = { sentence, seeds, seed: seeds[0] ?? null, cells: [] };
  row.switch = makeSwitch(seeds, `Seed of sentence ${sentence.number}`, seed => chooseSeed([row], seed), -1);
  row.all = make("button", { type: "button", class: "all", tabindex: -1,
    "aria-label": `Play all arms of sentence ${sentence.number}` }, "play all");
  row.all.addEventListener("click", () => playAll(row));
  row.element = make("tr", { role: "row", class: "sentence" }, make("th", { role: "rowheader", scope: "row" },
    make("span", { class: "number" }, String(sentence.number)), make("p", { dir: "auto" }, sentence.text), row.all, row.switch));
  for (const { name } of page.arms) {
    const cell = { row, arm: name, element: make("td", { role: "gridcell" }) };
    row.cells.push(cell);
    row.element.append(cell.element);
    fill(cell);
  }
  return row;
}

function makeSwitch(seeds, label, choose, tabindex) {
  const group = make("span", { class: "seeds", role: "group", "aria-label": label }, "seed");
  group.hidden = !seeds.length;
  seeds.forEach((seed, index) => {
    const button = make("button", { type: "button", tabindex, "aria-label": `seed ${seed}` }, seed);
    button.setAttribute("aria-pressed", index === 0);
    button.addEventListener("click", () => choose(seed));
    group.append(button);
  });
  return group;
}

/** Put the clip of the row's seed into a cell, or the arm's only clip if it has just one. */
function fill(cell) {
  const clips = cell.row.sentence.clips.filter(clip => clip.arm === cell.arm);
  cell.clip = clips.length === 1 ? clips[0] : clips.find(clip => clip.seed === cell.row.seed) ?? null;
  cell.sound = cell.clip?.sound;
  cell.button = null;
  cell.element.replaceChildren(makeArmName(cell.arm), ...(cell.sound ? makePlayer(cell) : [makeAbsence(cell)]));
  cell.target = cell.element.querySelector(".target");
  cell.target.addEventListener("focus", () => makeTabbable(cell));
}

function makeAbsence({ clip }) {
  return make("span", { class: "absence target", tabindex: -1 }, clip === null ? "no clip" : clip.problem);
}

function makePlayer(cell) {
  const picture = make("div", { class: "picture", "aria-hidden": true });
  picture.style.setProperty("--picture", `url("${cell.clip.picture}")`);
  picture.addEventListener("click", event => {
    const box = picture.getBoundingClientRect();
    play(cell, (event.clientX - box.left) / box.width);
  });
  cell.button = make("button", { type: "button", class: "play target", tabindex: -1 });
  cell.button.addEventListener("click", () => player.clip === cell ? player.toggle(cell) : play(cell));
  cell.time = make("span", { class: "time" });
  drawState(cell);
  return [picture, make("div", { class: "controls" }, cell.button, cell.time), makeValues(cell), ...makeTranscript(cell.clip)];
}

/** What the ASR model transcribed. */
function makeTranscript({ transcript, transcript_is_right }) {
  if (transcript === undefined) return [];
  return [make("q", { dir: "auto", title: "what the ASR model transcribed", class: transcript_is_right ? "quiet" : "" },
    transcript || "(no words)")];
}

/** Every metric, measured or not, so that it stands on one line in all cells; then what is unusual about the clip. */
function makeValues({ clip, row }) {
  const list = make("dl", { class: "values" });
  const add = (name, value, meaning) => list.append(make("div", {}, make("dt", meaning ? { title: meaning } : {}, name),
    make("dd", {}, value)));
  page.columns.forEach(({ heading, in_cell, meaning }, index) => {
    if (in_cell) add(heading, format(clip.values[index], index), meaning);
  });
  if (row.seeds.length && clip.seed !== null && clip.seed !== row.seed) add("seed", clip.seed);
  if (clip.ended_with_eos === false) list.append(make("dt", { class: "warning" }, "no EOS: ran to the limit"));
  return list;
}

/* ---- playing ---- */

function play(cell, fraction = 0) {
  queue = [];
  start(cell, fraction);
}

/** Play the clips of a sentence one after another. */
function playAll(row) {
  const cells = row.cells.filter(cell => cell.sound);
  if (!cells.length) return;
  player.stop();
  queue = cells.slice(1);
  start(cells[0]);
}

function start(cell, fraction = 0) {
  const other = player.clip;
  if (!fraction && keep.checked && other && other !== cell && other.row === cell.row && cell.clip.seconds)
    fraction = Math.min(player.position(other) / cell.clip.seconds, 0.95);
  cell.target.focus({ preventScroll: true });
  player.play(cell, fraction);
}

/** Show in the cell whether it plays and how far it is. */
function drawState(cell) {
  if (!cell.button) return;
  const playing = player.isPlaying(cell), position = player.position(cell);
  const length = cell.clip.seconds ?? (cell === player.clip && player.audio.duration);
  const seed = cell.row.seeds.length ? `, seed ${cell.row.seed}` : "";
  cell.element.classList.toggle("current", cell === player.clip);
  cell.element.classList.toggle("playing", playing);
  cell.element.style.setProperty("--progress", player.progress(cell));
  const name = `${cell.arm}, sentence ${cell.row.sentence.number}${seed}`;
  cell.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${name}`);
  cell.time.textContent = `${position ? `${position.toFixed(1)} / ` : ""}${length ? `${length.toFixed(1)} s` : ""}`;
}

/* ---- choosing seed, filter and order ---- */

function chooseSeed(candidates, seed) {
  for (const row of candidates.filter(row => row.seeds.includes(seed) && row.seed !== seed)) {
    const playing = row.cells.find(cell => player.isPlaying(cell));
    const focused = row.cells.find(cell => cell.target === document.activeElement);
    if (row.cells.includes(player.clip)) player.stop();
    row.seed = seed;
    row.cells.forEach(fill);
    press(row.switch, row.seeds.indexOf(seed));
    focused?.target.focus();
    if (playing?.sound) play(playing);
  }
  const common = allSeeds.findIndex(seed => rows.every(row => row.seed === seed || !row.seeds.length));
  press(globalSwitch, common);
  makeTabbable(tabbable());
}

function press(group, pressed) {
  group.querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", index === pressed));
}

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    row.element.hidden = !words.every(word => row.sentence.text.toLowerCase().includes(word));
    if (row.element.hidden && row.cells.includes(player.clip)) player.stop();
  }
  const count = visibleRows().length;
  document.getElementById("nothing").hidden = count > 0;
  document.getElementById("count").textContent = count === rows.length
    ? `${count} ${count === 1 ? "sentence" : "sentences"}` : `${count} of ${rows.length} sentences`;
  makeTabbable(tabbable());
}

function clearFilter(event) {
  if (event.key !== "Escape") return;
  filter.value = "";
  applyFilter();
}

function applySort() {
  const sign = descending ? -1 : 1;
  const keyed = rows.map((row, index) => ({ row, index, key: sortKey(row) }));
  // rows without a value stay at the end in both directions
  keyed.sort((one, other) => (one.key === null) - (other.key === null)
    || sign * (one.key - other.key) || one.index - other.index);
  grid.tBodies[0].append(...keyed.map(({ row }) => row.element));
  document.getElementById("of").hidden = column.value === "";
}

function reverse() {
  descending = !descending;
  direction.textContent = descending ? "↓" : "↑";
  direction.setAttribute("aria-label", `Direction: ${descending ? "descending" : "ascending"}`);
  applySort();
}

function sortKey(row) {
  if (column.value === "") return row.sentence.number;
  const clips = row.sentence.clips.filter(clip => arm.value === "" || clip.arm === page.arms[arm.value].name);
  return mean(clips.map(clip => clip.values[column.value]));
}

function visibleRows() {
  const sorted = [...grid.tBodies[0].rows].map(element => rows.find(row => row.element === element));
  return sorted.filter(row => !row.element.hidden);
}

/* ---- the keyboard ---- */

/** The cell that Tab reaches: the one it reached before, or the first visible one. */
function tabbable() {
  const cells = visibleRows().flatMap(row => row.cells);
  return cells.find(cell => cell.target.tabIndex === 0) ?? cells[0] ?? null;
}

function makeTabbable(chosen) {
  for (const row of rows) for (const cell of row.cells) cell.target.tabIndex = cell === chosen ? 0 : -1;
}

function move(cell, key) {
  const visible = visibleRows();
  const down = (key === "ArrowDown") - (key === "ArrowUp");
  const right = (key === "ArrowRight") - (key === "ArrowLeft");
  const next = visible[visible.indexOf(cell.row) + down]?.cells[cell.row.cells.indexOf(cell) + right];
  next?.target.focus({ preventScroll: true });
  next?.element.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** The seed of a digit: the seed of that name, or of that place where all seeds are longer than a digit. */
function seedFor(key) {
  if (allSeeds.includes(key)) return key;
  return allSeeds.every(seed => seed.length > 1) ? allSeeds[key - 1] : undefined;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const cell = rows.flatMap(row => row.cells).find(cell => cell.target === event.target);
  if (event.key === "/") filter.focus();
  else if (/^[0-9]$/.test(event.key)) chooseSeed(cell ? [cell.row] : rows, seedFor(event.key));
  else if (cell && event.shiftKey && /^Arrow(Left|Right)$/.test(event.key)) {
    if (cell === player.clip) player.seek(event.key === "ArrowLeft" ? -SEEK_SECONDS : SEEK_SECONDS);
  } else if (cell && event.key.startsWith("Arrow")) move(cell, event.key);
  else return;
  event.preventDefault();
}

/* ---- putting it together ---- */

/** One column for each arm where they fit, else the cells of a sentence in even rows below it. */
function fold() {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const width = document.documentElement.clientWidth / rem - 2 * parseFloat(getComputedStyle(tools).paddingLeft) / rem;
  const arms = grid.rows[0].cells.length - 1, lines = Math.ceil(arms / Math.max(1, Math.floor((width + 1.25) / 10.75)));
  grid.classList.toggle("folded", width < 14 + 9.5 * arms);
  grid.style.setProperty("--columns", Math.ceil(arms / lines));
}

function addOptions(select, first, names) {
  select.append(make("option", { value: "" }, first));
  names.forEach((name, index) => select.append(make("option", { value: index }, name)));
}

addOptions(column, "sentence", page.columns.map(({ heading }) => heading));
addOptions(arm, "all arms", page.arms.map(({ name }) => name));
grid.append(makeHead(), make("tbody", { role: "rowgroup" }, ...rows.map(row => row.element)), makeFoot());
tools.insertBefore(globalSwitch, document.getElementById("count"));
tools.hidden = false;
tools.addEventListener("submit", event => event.preventDefault());
filter.addEventListener("input", applyFilter);
filter.addEventListener("keydown", clearFilter);
for (const select of [column, arm]) select.addEventListener("change", applySort);
direction.addEventListener("click", reverse);
document.addEventListener("keydown", onKey);
addEventListener("resize", fold);
fold();
applySort();
applyFilter();
