"use strict";

/* How a listener uses the page: playing, choosing what is seen, the keyboard. page.js draws what this acts upon. */

const SEEK_SECONDS = 0.5;
let current = null;
let descending = false;

/* ---- playing: one player for the whole page, so that only one clip can sound ---- */

function toggle(cell) {
  if (cell !== current) play(cell, 0);
  else if (player.paused) start();
  else player.pause();
}

function play(cell, fraction) {
  cell.target.focus({ preventScroll: true });
  said.textContent = "";
  if (cell !== current) {
    release();
    current = cell;
    player.src = cell.clip.sound;
  }
  whenKnown(() => { player.currentTime = fraction * player.duration; });
  start();
}

function start() {
  player.play().catch(error => {
    // changing the clip while it loads aborts the older request, which is what was wanted
    if (error.name !== "AbortError") say(`This browser cannot play the clip: ${error.message}`);
  });
}

function whenKnown(act) {
  if (player.readyState >= HTMLMediaElement.HAVE_METADATA) act();
  else player.addEventListener("loadedmetadata", act, { once: true });
}

function release() {
  player.pause();
  const past = current;
  current = null;
  if (past) mark(past);
}

function seek(cell, seconds) {
  if (cell !== current) return;
  player.currentTime = Math.min(Math.max(player.currentTime + seconds, 0), player.duration || 0);
  mark(cell);
}

/** Show in the cell whether it plays and how far it is. */
function mark(cell) {
  if (!cell.button) return;
  const playing = cell === current && !player.paused;
  const at = cell === current ? player.currentTime : 0;
  const length = figure(cell.clip, "seconds") ?? (cell === current && player.duration);
  const seed = cell.row.seeds.length ? `, seed ${cell.row.seed}` : "";
  cell.element.classList.toggle("current", cell === current);
  cell.element.classList.toggle("playing", playing);
  cell.element.style.setProperty("--progress", at ? at / player.duration : 0);
  const name = `${cell.arm}, sentence ${cell.row.sentence.number}${seed}`;
  cell.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${name}`);
  cell.time.textContent = `${at ? `${at.toFixed(1)} / ` : ""}${length ? `${length.toFixed(1)} s` : ""}`;
}

function follow() {
  if (!current) return;
  mark(current);
  if (!player.paused) requestAnimationFrame(follow);
}

function say(text) {
  said.textContent = text;
}

/* ---- choosing what is seen ---- */

function choose(chosen, seed) {
  for (const row of chosen.filter(row => row.seeds.includes(seed) && row.seed !== seed)) {
    const sounding = row.cells.includes(current) && !player.paused ? current : null;
    const focused = row.cells.find(cell => cell.target === document.activeElement);
    if (row.cells.includes(current)) release();
    row.seed = seed;
    row.cells.forEach(fill);
    press(row.switch, row.seeds.indexOf(seed));
    focused?.target.focus();
    if (sounding?.clip?.sound) play(sounding, 0);
  }
  const common = allSeeds.findIndex(each => rows.every(row => row.seed === each || !row.seeds.length));
  press(everySwitch, common);
  makeTabbable(reachable());
}

function press(group, place) {
  group.querySelectorAll("button").forEach((button, each) => button.setAttribute("aria-pressed", each === place));
}

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    row.element.hidden = !words.every(word => row.sentence.text.toLowerCase().includes(word));
    if (row.element.hidden && row.cells.includes(current)) release();
  }
  const seen = visible().length;
  document.getElementById("nothing").hidden = seen > 0;
  document.getElementById("count").textContent = seen === rows.length
    ? `${seen} ${seen === 1 ? "sentence" : "sentences"}` : `${seen} of ${rows.length} sentences`;
  makeTabbable(reachable());
}

function clearFilter(event) {
  if (event.key !== "Escape") return;
  filter.value = "";
  applyFilter();
}

function applySort() {
  const sign = descending ? -1 : 1;
  const keyed = rows.map((row, place) => ({ row, place, key: sortKey(row) }));
  // what has no number stays at the end in both directions
  keyed.sort((one, other) => (one.key === null) - (other.key === null)
    || sign * (one.key - other.key) || one.place - other.place);
  grid.tBodies[0].append(...keyed.map(each => each.row.element));
  document.getElementById("of").hidden = column.value === "";
}

function turn() {
  descending = !descending;
  direction.textContent = descending ? "↓" : "↑";
  direction.setAttribute("aria-label", `Direction: ${descending ? "descending" : "ascending"}`);
  applySort();
}

function sortKey(row) {
  if (column.value === "") return row.sentence.number;
  const clips = row.sentence.clips.filter(clip => arm.value === "" || clip.arm === page.arms[arm.value].name);
  return mean(clips.map(clip => clip.figures[column.value]));
}

function visible() {
  const all = [...grid.tBodies[0].rows].map(element => rows.find(row => row.element === element));
  return all.filter(row => !row.element.hidden);
}

/* ---- the keyboard ---- */

/** The cell that Tab reaches: the one it reached before, or the first one seen. */
function reachable() {
  const seen = visible().flatMap(row => row.cells);
  return seen.find(cell => cell.target.tabIndex === 0) ?? seen[0] ?? null;
}

function makeTabbable(cell) {
  for (const row of rows) for (const each of row.cells) each.target.tabIndex = each === cell ? 0 : -1;
}

function move(cell, key) {
  const seen = visible();
  const down = (key === "ArrowDown") - (key === "ArrowUp");
  const right = (key === "ArrowRight") - (key === "ArrowLeft");
  const next = seen[seen.indexOf(cell.row) + down]?.cells[cell.row.cells.indexOf(cell) + right];
  next?.target.focus({ preventScroll: true });
  next?.element.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function seedFor(key) {
  if (allSeeds.includes(key)) return key;
  return allSeeds.every(seed => seed.length > 1) ? allSeeds[key - 1] : undefined;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const cell = rows.flatMap(row => row.cells).find(each => each.target === event.target);
  if (event.key === "/") filter.focus();
  else if (/^[0-9]$/.test(event.key)) choose(cell ? [cell.row] : rows, seedFor(event.key));
  else if (cell && event.shiftKey && event.key === "ArrowLeft") seek(cell, -SEEK_SECONDS);
  else if (cell && event.shiftKey && event.key === "ArrowRight") seek(cell, SEEK_SECONDS);
  else if (cell && event.key.startsWith("Arrow")) move(cell, event.key);
  else return;
  event.preventDefault();
}
