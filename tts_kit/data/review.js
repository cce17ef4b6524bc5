/* The review: clips in a list, one of them on the desk; every edit is sent at once, and the list is what the server says. */

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map(each => [each.id, each]));
const token = new URLSearchParams(location.search).get("token");
const clips = new Map();
/** Pixels of one stroke of the waveform and the gap after it. */
const BAR = 3;
let order = [], current = null, typed = null, sound = { id: null, peaks: [] }, pending = Promise.resolve();

/** Ask the server; gives its answer, or throws an Error that carries it. */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "X-Token": token } });
  } catch {
    throw new Error("The review does not answer. What was saved is safe: start it again, and open its new address.");
  }
  if (answer.ok) return answer;
  const told = await answer.json();
  throw Object.assign(new Error(told.problem), { now: told.now, stale: answer.status === 409 });
}

/** Edits go one after another, so that each is made on what the one before left. */
function edit(change) {
  pending = pending.then(async () => {
    const seen = change.do === "undo" ? {} : { seen: clips.get(change.id)?.revision };
    if (change.other) seen.seen_other = clips.get(change.other)?.revision;
    try {
      const answer = await (await ask("edit", { method: "POST", body: JSON.stringify({ ...change, ...seen }) })).json();
      take(answer.changed, answer.order);
      tell("");
      return true;
    } catch (error) {
      error.stale ? disagree(change, error) : tell(error.message);
      return false;
    }
  });
  return pending;
}

function take(changed, newOrder) {
  for (const clip of changed) clips.set(clip.id, clip);
  order = newOrder;
  for (const id of clips.keys()) if (!order.includes(id)) clips.delete(id);
  if (current && !clips.has(current)) current = order.find(id => id.startsWith(current)) ?? null;
  draw();
}

/** Somebody else changed the clip: show what they made of it, and let the person choose. */
function disagree(change, error) {
  if (error.now) clips.set(error.now.id, error.now);
  draw();
  const theirs = button("Take theirs", () => { typed = null; tell(""); draw(); });
  const mine = button("Keep mine", () => { tell(""); edit(change); });
  const reload = button("Reload", () => location.reload());
  tell(error.message, ...(error.now && change.do === "text" ? [mine, theirs] : [reload]));
}

function tell(message, ...more) {
  part.said.replaceChildren(message, ...more);
}

function button(label, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  made.addEventListener("click", act);
  return made;
}

/** The ids that are shown, in their order. */
function visible() {
  const words = part.filter.value.toLowerCase();
  const wanted = { open: ["new"], all: ["new", "checked", "dropped"] }[part.which.value] ?? [part.which.value];
  const some = order.filter(id => (wanted.includes(clips.get(id).state) || id === current)
    && clips.get(id).text.toLowerCase().includes(words));
  if (part.sort.value === "suspicion") some.sort((one, other) => clips.get(other).suspicion - clips.get(one).suspicion);
  return some;
}

function draw() {
  const ids = visible();
  part.list.replaceChildren(...ids.map(line));
  const all = [...clips.values()], left = all.filter(clip => clip.state === "new");
  const kept = all.filter(clip => clip.state !== "dropped").reduce((sum, clip) => sum + clip.seconds, 0);
  part.progress.value = all.length ? 1 - left.length / all.length : 0;
  part.count.textContent = `${all.length - left.length} of ${all.length} checked, ${(kept / 60).toFixed(1)} minutes kept`;
  if (!current || !clips.has(current)) return lay(ids[0] ?? null);
  set();
}

function line(id) {
  const clip = clips.get(id), made = document.createElement("li");
  made.className = clip.state;
  made.dataset.id = id;
  made.style.setProperty("--suspicion", clip.suspicion);
  if (id === current) made.setAttribute("aria-current", "true");
  for (const [name, words] of [["text", clip.text || "…"],
    ["mark", { new: "", checked: "✓", dropped: "✗" }[clip.state]], ["why", clip.doubts[0] ?? ""]])
    made.append(Object.assign(document.createElement("span"), { className: name, textContent: words }));
  return made;
}

/** Put a clip on the desk and fetch its sound. */
async function lay(id) {
  await keep();
  [current, typed] = [id, null];
  set();
  part.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const row = id && part.list.querySelector(`[data-id="${CSS.escape(id)}"]`);
  row?.setAttribute("aria-current", "true");
  row?.scrollIntoView({ block: "nearest" });
  if (id) await listen(id);
}

function set() {
  part.desk.hidden = !current;
  part.nothing.hidden = Boolean(current);
  if (!current) return;
  const clip = clips.get(current);
  part.id.textContent = clip.id;
  part.length.textContent = `${clip.seconds.toFixed(1)} s`;
  part.state.textContent = { new: "not checked", checked: "checked", dropped: "dropped" }[clip.state];
  if (typed === null && part.text.value !== clip.text) part.text.value = clip.text;
  part.heard.textContent = clip.heard;
  part.drop.textContent = clip.state === "dropped" ? "Restore" : "Drop";
  part.merge.disabled = !next();
  part.doubts.replaceChildren(...clip.doubts.map(doubt =>
    Object.assign(document.createElement("li"), { textContent: doubt })));
  if (sound.id !== `${clip.id} ${clip.seconds}`) listen(clip.id);
}

async function listen(id) {
  const name = `${id} ${clips.get(id).seconds}`;
  if (sound.id === name) return;
  sound = { id: name, peaks: [] };
  try {
    const blob = await (await ask(`sound?id=${encodeURIComponent(id)}`)).blob();
    if (sound.id !== name) return;
    URL.revokeObjectURL(part.player.src);
    part.player.src = URL.createObjectURL(blob);
    part.wave.width = Math.round(part.wave.clientWidth * devicePixelRatio);
    part.wave.height = Math.round(part.wave.clientHeight * devicePixelRatio);
    sound.peaks = peaks(await blob.arrayBuffer(), Math.floor(part.wave.width / BAR));
    paint();
  } catch (error) {
    tell(error.message);
  }
}

/** The loudest sample of each of `count` stretches of a 16-bit WAV. */
function peaks(buffer, count) {
  const samples = new Int16Array(buffer, 44), found = [];
  for (let place = 0; place < count; place++) {
    let most = 0;
    for (let n = Math.floor(place * samples.length / count); n < (place + 1) * samples.length / count; n++)
      most = Math.max(most, Math.abs(samples[n]));
    found.push(most / 32768);
  }
  return found;
}

function paint() {
  const brush = part.wave.getContext("2d"), { width, height } = part.wave, style = getComputedStyle(document.body);
  const place = part.player.duration ? part.player.currentTime / part.player.duration * width : 0;
  brush.clearRect(0, 0, width, height);
  sound.peaks.forEach((peak, number) => {
    brush.fillStyle = style.getPropertyValue(BAR * number < place ? "--accent" : "--ink");
    const tall = Math.max(1, Math.round(peak ** 0.7 * height));
    brush.fillRect(BAR * number, Math.round((height - tall) / 2), BAR - 1, tall);
  });
  brush.fillStyle = style.getPropertyValue("--warning");
  brush.fillRect(place, 0, 2, height);
}

/** Save what was typed, without saying that it is right. */
async function keep(checked = false) {
  clearTimeout(keep.timer);
  const clip = clips.get(current);
  if (!clip || (!checked && (typed === null || typed === clip.text))) return true;
  const text = typed ?? clip.text, unchanged = text === clip.text;
  part.saved.textContent = "saving …";
  const done = await edit(unchanged ? { do: "check", id: clip.id } : { do: "text", id: clip.id, text, checked });
  part.saved.textContent = done ? "saved" : "not saved";
  if (done && typed === text) typed = null;
  return done;
}

function next() {
  const clip = clips.get(current), other = clips.get(order[order.indexOf(current) + 1]);
  return other?.recording === clip?.recording ? other?.id : undefined;
}

function step(by) {
  const ids = visible(), place = ids.indexOf(current);
  const id = ids[Math.min(ids.length - 1, Math.max(0, place + by))];
  if (id && id !== current) return lay(id);
}

async function done() {
  const ids = visible(), open = ids.find(id => id !== current && clips.get(id).state === "new");
  const after = ids[ids.indexOf(current) + 1] ?? open;
  if (!await keep(true)) return;
  current = after ?? null;
  draw();
  if (current) lay(current);
}

async function drop() {
  if (await keep()) await edit({ do: clips.get(current).state === "dropped" ? "restore" : "drop", id: current });
}

async function split() {
  const texts = [part.text.value.slice(0, part.text.selectionStart), part.text.value.slice(part.text.selectionStart)];
  if (!await keep()) return;
  typed = null;
  await edit({ do: "split", id: current, at: part.player.currentTime, texts });
}

async function merge() {
  const other = next();
  if (other && await keep()) await edit({ do: "merge", id: current, other });
}

async function undo() {
  if (await keep()) await edit({ do: "undo" });
}

function play() {
  part.player.paused ? part.player.play().catch(error => tell(String(error))) : part.player.pause();
}

function seek(by) {
  part.player.currentTime = Math.max(0, part.player.currentTime + by);
}

const KEYS = { " ": play, ArrowUp: () => step(-1), ArrowDown: () => step(1), ArrowLeft: () => seek(-1),
  ArrowRight: () => seek(1), d: drop, b: split, m: merge, z: undo };

document.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && event.target !== part.filter && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    done();
  } else if ((event.ctrlKey || event.metaKey) && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
part.list.addEventListener("click", event => lay(event.target.closest("li")?.dataset.id ?? current));
part.text.addEventListener("input", () => {
  typed = part.text.value;
  part.saved.textContent = "";
  clearTimeout(keep.timer);
  keep.timer = setTimeout(keep, 800);
});
part.wave.addEventListener("click", event => {
  part.player.currentTime = event.offsetX / part.wave.clientWidth * (part.player.duration || 0);
  paint();
});
for (const [name, act] of Object.entries({ play, check: done, drop, split, merge, undo }))
  part[name].addEventListener("click", act);
part.everything.addEventListener("click", () => { part.which.value = "all"; part.filter.value = ""; draw(); });
for (const name of ["which", "sort", "filter"]) part[name].addEventListener("input", draw);
for (const name of ["play", "pause", "ended"])
  part.player.addEventListener(name, () => { part.play.textContent = part.player.paused ? "Play" : "Pause"; });
for (const name of ["timeupdate", "seeked", "loadedmetadata"]) part.player.addEventListener(name, paint);
addEventListener("beforeunload", event => {
  if (typed !== null && typed !== clips.get(current)?.text) event.preventDefault();
});

ask("clips").then(answer => answer.json()).then(all => take(all, all.map(clip => clip.id)))
  .catch(error => tell(error.message));
