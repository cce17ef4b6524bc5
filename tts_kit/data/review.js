/* The review page: a list of clips and an editor for one of them. Every edit is sent at once; the state is the server's. */

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id, element]));
const token = new URLSearchParams(location.search).get("token");
const clips = new Map();
/** Pixels of one bar of the waveform and the gap after it. */
const BAR = 3;
/** Milliseconds after which an edit is sent again while the server does not answer. */
const RETRY = 2000;
/** Whether the text is split at its cursor, which was put there last, or where the audio is. */
let atCursor = false;
let order = [], current = null, typed = null, waveform = { key: null, peaks: [] }, pending = Promise.resolve();

/** Send a request; returns the response, or throws an Error with the server's message. */
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { "X-Token": token } });
  } catch {
    throw Object.assign(new Error("The review does not answer. What was saved is safe: start it again, and this page goes on. "
      + "If it prints another address than this one, copy what you typed first."), { offline: true });
  }
  if (response.ok) return response;
  const failure = await response.json();
  throw new Error(failure.error);
}

/** Edits are sent one after another, in the order in which they were made. */
function edit(change) {
  pending = pending.then(async () => {
    try {
      const response = await request("edit", { method: "POST", body: JSON.stringify(change) });
      const result = await response.json();
      update(result.changed, result.order);
      showMessage("");
      return true;
    } catch (error) {
      showMessage(error.message);
      return error.offline ? null : false;
    }
  });
  return pending;
}

function update(changed, newOrder) {
  for (const clip of changed) clips.set(clip.id, clip);
  order = newOrder;
  for (const id of clips.keys()) if (!order.includes(id)) clips.delete(id);
  if (current && !clips.has(current)) current = order.find(id => id.startsWith(current)) ?? null;
  draw();
}

function showMessage(message) {
  ui.message.textContent = message;
}

/** The ids in the list, in its order. */
function visibleIds() {
  const words = ui.filter.value.toLowerCase();
  const states = { open: ["new"], all: ["new", "checked", "dropped"] }[ui.which.value] ?? [ui.which.value];
  const ids = order.filter(id => (states.includes(clips.get(id).state) || id === current)
    && clips.get(id).text.toLowerCase().includes(words));
  if (ui.sort.value === "score") ids.sort((a, b) => clips.get(b).score - clips.get(a).score);
  return ids;
}

function draw() {
  const ids = visibleIds();
  ui.list.replaceChildren(...ids.map(listItem));
  const all = [...clips.values()], done = all.filter(clip => clip.state !== "new").length;
  const seconds = all.filter(clip => clip.state !== "dropped").reduce((sum, clip) => sum + clip.seconds, 0);
  ui.progress.value = all.length ? done / all.length : 0;
  ui.count.textContent = `${done} of ${all.length} checked, ${(seconds / 60).toFixed(1)} minutes kept`;
  if (!current || !clips.has(current)) return select(ids[0] ?? null);
  drawEditor();
}

function listItem(id) {
  const clip = clips.get(id), item = document.createElement("li");
  item.className = clip.state;
  item.dataset.id = id;
  item.style.setProperty("--score", clip.score);
  if (id === current) item.setAttribute("aria-current", "true");
  for (const [className, textContent] of [["text", clip.text || "…"],
    ["mark", { new: "", checked: "✓", dropped: "✗" }[clip.state]], ["flag", clip.flags[0] ?? ""]])
    item.append(Object.assign(document.createElement("span"), { className, textContent }));
  return item;
}

/** Show a clip in the editor and load its audio. */
async function select(id) {
  await save();
  [current, typed, atCursor] = [id, null, false];
  drawEditor();
  ui.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const row = id && ui.list.querySelector(`[data-id="${CSS.escape(id)}"]`);
  row?.setAttribute("aria-current", "true");
  row?.scrollIntoView({ block: "nearest" });
  if (id) await loadAudio(id);
}

function drawEditor() {
  ui.editor.hidden = !current;
  ui.empty.hidden = Boolean(current);
  if (!current) return;
  const clip = clips.get(current);
  ui.id.textContent = clip.id;
  ui.length.textContent = `${clip.seconds.toFixed(1)} s`;
  ui.state.textContent = { new: "not checked", checked: "checked", dropped: "dropped" }[clip.state];
  if (typed === null && ui.text.value !== clip.text) ui.text.value = clip.text;
  ui.transcript.textContent = clip.transcript;
  ui.second.textContent = clip.second;
  ui.second_pass.hidden = !clip.second;
  drawHalves();
  ui.drop.textContent = clip.state === "dropped" ? "Restore" : "Drop";
  ui.merge.disabled = !nextInRecording();
  ui.flags.replaceChildren(...clip.flags.filter(flag => !clip.second || !flag.startsWith("second pass: ")).map(textContent => Object.assign(document.createElement("li"), { textContent })));
  loadAudio(clip.id);
}

async function loadAudio(id) {
  const key = `${id} ${clips.get(id).seconds}`;
  if (waveform.key === key) return;
  waveform = { key, peaks: [] };
  try {
    const blob = await (await request(`audio?id=${encodeURIComponent(id)}`)).blob();
    if (waveform.key !== key) return;
    URL.revokeObjectURL(ui.player.src);
    ui.player.src = URL.createObjectURL(blob);
    ui.wave.width = Math.round(ui.wave.clientWidth * devicePixelRatio);
    ui.wave.height = Math.round(ui.wave.clientHeight * devicePixelRatio);
    waveform.peaks = peaks(await blob.arrayBuffer(), Math.floor(ui.wave.width / BAR));
    drawWaveform();
  } catch (error) {
    showMessage(error.message);
  }
}

/** The peak of each of `count` equal parts of a 16-bit WAV. */
function peaks(buffer, count) {
  const samples = new Int16Array(buffer, 44), result = [];
  for (let bar = 0; bar < count; bar++) {
    let peak = 0;
    for (let n = Math.floor(bar * samples.length / count); n < (bar + 1) * samples.length / count; n++)
      peak = Math.max(peak, Math.abs(samples[n]));
    result.push(peak / 32768);
  }
  return result;
}

function drawWaveform() {
  const context = ui.wave.getContext("2d"), { width, height } = ui.wave, style = getComputedStyle(document.body);
  const cursor = ui.player.duration ? ui.player.currentTime / ui.player.duration * width : 0;
  context.clearRect(0, 0, width, height);
  waveform.peaks.forEach((peak, bar) => {
    context.fillStyle = style.getPropertyValue(BAR * bar < cursor ? "--accent" : "--ink");
    const barHeight = Math.max(1, Math.round(peak ** 0.7 * height));
    context.fillRect(BAR * bar, Math.round((height - barHeight) / 2), BAR - 1, barHeight);
  });
  context.fillStyle = style.getPropertyValue("--warning");
  context.fillRect(cursor, 0, 2, height);
  drawHalves();
}

/** Both texts of a split: at the space nearest to the cursor, if that was placed last, else at the audio's share of the
    text; null where there are not two words. */
function halves() {
  const text = ui.text.value, cursor = ui.text.selectionStart;
  const share = ui.player.duration ? ui.player.currentTime / ui.player.duration : 0;
  const target = atCursor && cursor > 0 && cursor < text.length ? cursor : share * text.length;
  const spaces = [...text.matchAll(/\s+/g)].map(space => space.index)
    .filter(index => text.slice(0, index).trim() && text.slice(index).trim());
  if (!spaces.length) return null;
  const index = spaces.reduce((best, other) => Math.abs(other - target) < Math.abs(best - target) ? other : best);
  return [text.slice(0, index), text.slice(index)];
}

function drawHalves() {
  const texts = halves();
  ui.halves.hidden = !texts || !ui.player.currentTime || ui.player.ended;
  if (texts) [ui.before.textContent, ui.after.textContent] = texts.map(text => text.trim());
}

/** Save the typed text; `checked` also marks the clip as checked. */
async function save(checked = false) {
  clearTimeout(save.timer);
  const clip = clips.get(current);
  if (!clip || (!checked && (typed === null || typed === clip.text))) return true;
  const text = typed ?? clip.text, unchanged = text === clip.text;
  ui.saved.textContent = "saving …";
  const ok = await edit(unchanged ? { action: "check", id: clip.id } : { action: "text", id: clip.id, text, checked });
  ui.saved.textContent = ok ? "saved" : "not saved";
  if (ok && typed === text) typed = null;
  if (ok === null && typed !== null) save.timer = setTimeout(save, RETRY);
  return ok;
}

function nextInRecording() {
  const clip = clips.get(current), other = clips.get(order[order.indexOf(current) + 1]);
  return other?.recording === clip?.recording ? other?.id : undefined;
}

function move(by) {
  const ids = visibleIds();
  const id = ids[Math.min(ids.length - 1, Math.max(0, ids.indexOf(current) + by))];
  if (id && id !== current) return select(id);
}

async function check() {
  const ids = visibleIds(), unchecked = ids.find(id => id !== current && clips.get(id).state === "new");
  const following = ids[ids.indexOf(current) + 1] ?? unchecked;
  if (!await save(true)) return;
  current = following ?? null;
  draw();
  if (current) select(current);
}

async function drop() {
  if (await save()) await edit({ action: clips.get(current).state === "dropped" ? "restore" : "drop", id: current });
}

async function split() {
  const texts = halves();
  if (!texts) return showMessage("One word cannot be split: write the words of both halves first.");
  if (!await save()) return;
  typed = null;
  await edit({ action: "split", id: current, at: ui.player.currentTime, texts });
}

/** Take over what the second pass wrote. */
function takeSecond() {
  typed = ui.text.value = clips.get(current).second;
  return save();
}

async function merge() {
  const other = nextInRecording();
  if (other && await save()) await edit({ action: "merge", id: current, other });
}

async function undo() {
  if (await save()) await edit({ action: "undo" });
}

function play() {
  ui.player.paused ? ui.player.play().catch(error => showMessage(String(error))) : ui.player.pause();
}

function seek(by) {
  ui.player.currentTime = Math.max(0, ui.player.currentTime + by);
}

const KEYS = { " ": play, ArrowUp: () => move(-1), ArrowDown: () => move(1), ArrowLeft: () => seek(-1),
  ArrowRight: () => seek(1), ",": () => seek(-1), ".": () => seek(1), d: drop, b: split, m: merge, z: undo };

document.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && event.target !== ui.filter && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    check();
  } else if ((event.ctrlKey || event.metaKey) && KEYS[event.key]
    && !(event.target === ui.text && /^Arrow(Left|Right)$/.test(event.key))) {  // there they move by words
    event.preventDefault();
    KEYS[event.key]();
  }
});
ui.list.addEventListener("click", event => select(event.target.closest("li")?.dataset.id ?? current));
ui.text.addEventListener("input", () => {
  typed = ui.text.value;
  ui.saved.textContent = "";
  clearTimeout(save.timer);
  save.timer = setTimeout(save, 800);
});
for (const name of ["click", "keyup"]) ui.text.addEventListener(name, event => {
  if (name === "click" || /^(Arrow|Home|End)/.test(event.key)) atCursor = true;
  drawHalves();
});
ui.wave.addEventListener("click", event => {
  atCursor = false;
  ui.player.currentTime = event.offsetX / ui.wave.clientWidth * (ui.player.duration || 0);
  drawWaveform();
});
for (const [id, onClick] of Object.entries({ play, check, drop, split, merge, undo, take_second: takeSecond })) ui[id].addEventListener("click", onClick);
ui.show_all.addEventListener("click", () => { ui.which.value = "all"; ui.filter.value = ""; draw(); });
for (const id of ["which", "sort", "filter"]) ui[id].addEventListener("input", draw);
for (const event of ["play", "pause", "ended"])
  ui.player.addEventListener(event, () => { ui.play.textContent = ui.player.paused ? "Play" : "Pause"; });
for (const event of ["timeupdate", "seeked", "loadedmetadata"]) ui.player.addEventListener(event, drawWaveform);
addEventListener("beforeunload", event => {
  if (typed !== null && typed !== clips.get(current)?.text) event.preventDefault();
});

request("clips").then(response => response.json()).then(all => update(all, all.map(clip => clip.id)))
  .catch(error => showMessage(error.message));
