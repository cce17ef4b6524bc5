/* The page of the speech server: sends the text as any client would, plays the answer and keeps it until the page is closed. */

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id, element]));
/** Results that stay on the page; the memory of older ones is released. */
const MAX_RESULTS = 20;
const CLIP_RATE = 24000, MIN_CLIP_SECONDS = 1, MAX_CLIP_SECONDS = 20, MAX_FILE_BYTES = 50e6;
let request = null, startTime = 0, clip = "", recorder = null;
/** The server's voices, and those made from a clip here: label, voice, and what a request for it carries beside the text. */
let voices = [];

/** Fetch from the server, with the key if there is one; throws an Error with the server's message. */
async function call(path, options = {}) {
  const authorization = ui.key.value ? { Authorization: `Bearer ${ui.key.value}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Start it again, and reload this page.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw Object.assign(new Error(body.error?.message ?? `The server answered ${response.status}.`), { status: response.status });
}

function post(path, body, signal) {
  return call(path, { method: "POST", signal, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

async function loadVoices() {
  try {
    const listed = (await (await call("v1/voices")).json()).data.filter(voice => !voice.alias_of);
    voices = [...listed.map(voice => ({ label: voice.name, model: voice.model, fields: { voice: voice.id } })),
      ...voices.filter(voice => voice.fields.reference_audio)];
    showVoices();
    ui.login.hidden = true;
    ui.error.textContent = "";
  } catch (error) {
    ui.login.hidden = error.status !== 401;
    ui.error.textContent = error.status === 401 && !ui.key.value ? "This server requires an API key." : error.message;
  }
}

function showVoices(selected = ui.voice.value) {
  const options = () => voices.map(voice => element("option", { value: voice.label, textContent: voice.label }));
  const other = ui.other.value;
  ui.voice.replaceChildren(...options());
  ui.other.replaceChildren(element("option", { value: "", textContent: "nothing" }), ...options());
  ui.voice.value = voices.some(voice => voice.label === selected) ? selected : voices[0].label;
  ui.other.value = other;
  update();
}

function update() {
  ui.speak.disabled = !request && !(ui.voice.value && ui.text.value.trim());
  ui.speak.textContent = request ? "Stop" : "Speak";
  const length = ui.text.value.length, seconds = Math.floor((performance.now() - startTime) / 1000);
  ui.count.textContent = request ? `${seconds} s` : length ? `${length} of ${ui.text.maxLength}` : "";
  ui.model.textContent = ui.voice.value ? `Model ${chosen()[0].model}. ` : "";
  ui.recognize.disabled = !clip;
  ui.add.disabled = !(clip && ui.words.value.trim() && ui.name.value.trim() && voices.length);
  ui.record.textContent = recorder ? "Stop recording" : "Record";
}

/** The voice, and the one to compare it with if there is one. */
function chosen() {
  return [ui.voice.value, ui.other.value].filter(Boolean).map(label => voices.find(voice => voice.label === label));
}

async function speak() {
  const body = { input: ui.text.value, response_format: ui.format.value, seed: Number(ui.seed.value) || 0,
    speed: Number(ui.speed.value) || 1, stream: false };
  request = new AbortController();
  startTime = performance.now();
  ui.error.textContent = "";
  update();
  const timer = setInterval(update, 500);
  try {
    addResult(body, await Promise.all(chosen().map(async ({ label, model, fields }) => {
      const response = await post("v1/audio/speech", { ...body, model, ...fields }, request.signal);
      return { label, blob: await response.blob(), endedWithEos: response.headers.get("X-Ended-With-EOS") === "true" };
    })));
  } catch (error) {
    if (error.name !== "AbortError") ui.error.textContent = error.message;
    request.abort();
  }
  request = null;
  clearInterval(timer);
  update();
}

/** Put a result on top of the list and play its first take. */
function addResult(body, takes) {
  const players = takes.map(({ label, blob, endedWithEos }) => {
    const url = URL.createObjectURL(blob), name = `${label}-${body.seed}.${body.response_format}`;
    return element("div", {}, element("audio", { controls: true, src: url, ariaLabel: label }),
      element("p", { className: "facts" }, `${label}, seed ${body.seed}`,
        endedWithEos ? ". " : ", cut at the length limit without EOS: try another seed. ",
        element("a", { href: url, download: name, textContent: `Download ${body.response_format}` })));
  });
  ui.results.prepend(element("li", {}, element("p", { className: "text", dir: "auto", textContent: body.input }), ...players));
  while (ui.results.children.length > MAX_RESULTS) {
    ui.results.lastChild.querySelectorAll("audio").forEach(audio => URL.revokeObjectURL(audio.src));
    ui.results.lastChild.remove();
  }
  const player = players[0].firstChild;
  player.play().catch(() => player.focus()); // a browser may require a click first
}

/** Take a file or recording as the clip: mono, at CLIP_RATE, whatever the browser can decode. */
async function takeClip(blob) {
  clip = "";
  ui.clip.hidden = true;
  await attempt("", async () => {
    if (blob.size > MAX_FILE_BYTES) throw new Error(`The file has ${Math.round(blob.size / 1e6)} MB; at most 50 are taken.`);
    const decoded = await new OfflineAudioContext(1, 1, CLIP_RATE).decodeAudioData(await blob.arrayBuffer()).catch(() => {
      throw new Error("The browser cannot decode this file. Give a WAV, FLAC, MP3 or M4A file.");
    });
    if (decoded.duration < MIN_CLIP_SECONDS || decoded.duration > MAX_CLIP_SECONDS) throw new Error(
      `The clip lasts ${decoded.duration.toFixed(1)} s; wanted ${MIN_CLIP_SECONDS} to ${MAX_CLIP_SECONDS} s. Cut it.`);
    const wav = waveFile(decoded);
    URL.revokeObjectURL(ui.clip.src);
    Object.assign(ui.clip, { src: URL.createObjectURL(wav), hidden: false });
    clip = await new Promise((resolve, reject) => {
      const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
      reader.readAsDataURL(wav);
    });
    return `${decoded.duration.toFixed(1)} s. Now its exact words.`;
  });
}

/** Mix decoded audio to one channel, as a 16-bit WAV. */
function waveFile(decoded) {
  const view = new DataView(new ArrayBuffer(44 + 2 * decoded.length)), channels = decoded.numberOfChannels;
  const text = (offset, word) => [...word].forEach((letter, index) => view.setUint8(offset + index, letter.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  [[4, 36 + 2 * decoded.length], [16, 16], [20, 0x10001], [24, CLIP_RATE], [28, 2 * CLIP_RATE], [32, 0x100002],
    [40, 2 * decoded.length]].forEach(([offset, value]) => view.setUint32(offset, value, true));
  const waves = Array.from({ length: channels }, (_, channel) => decoded.getChannelData(channel));
  for (let index = 0; index < decoded.length; index++) {
    const sample = waves.reduce((sum, wave) => sum + wave[index], 0) / channels;
    view.setInt16(44 + 2 * index, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

/** Show a status while something is done, and its result or error then. */
async function attempt(busy, action) {
  ui.status.textContent = busy;
  try {
    ui.status.textContent = await action() ?? "";
  } catch (error) {
    ui.status.textContent = error.message;
  }
  update();
}

async function record() {
  if (recorder) return recorder.stop();
  await attempt("", async () => {
    if (!navigator.mediaDevices) throw new Error("Browsers record on secure pages and on localhost only. Give a file.");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch(error => {
      throw new Error(`No microphone can be used (${error.message}). Allow it for this page, or give a file.`);
    });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = event => parts.push(event.data);
    const timer = setTimeout(() => recorder.stop(), 1000 * (MAX_CLIP_SECONDS - 0.5));
    recorder.onstop = () => {
      clearTimeout(timer);
      stream.getTracks().forEach(track => track.stop());
      recorder = null;
      takeClip(new Blob(parts));
    };
    recorder.start();
    return "Recording: speak now.";
  });
}

/** Add the clip as a voice, on the model without adapter if the server has it as a voice. */
function addVoice() {
  const label = ui.name.value.trim(), base = voices.find(voice => voice.fields.voice === "base") ?? voices[0];
  if (voices.some(voice => voice.label === label)) {
    ui.status.textContent = `There is a voice ${label}. Choose another name.`;
    return;
  }
  voices.push({ label, model: base.model,
    fields: { voice: base.fields.voice, reference_audio: clip, reference_text: ui.words.value } });
  ui.name.value = `clip ${voices.filter(voice => voice.fields.reference_audio).length + 1}`;
  ui.status.textContent = `${label} is chosen above.`;
  showVoices(label);
}

ui.form.addEventListener("submit", event => {
  event.preventDefault();
  request ? request.abort() : speak();
});
ui.text.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat && !ui.speak.disabled) {
    event.preventDefault();
    ui.form.requestSubmit();
  }
});
ui.key.addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  loadVoices();
});
ui.enter.addEventListener("click", loadVoices);
ui.record.addEventListener("click", record);
ui.add.addEventListener("click", addVoice);
ui.file.addEventListener("change", () => ui.file.files.length && takeClip(ui.file.files[0]));
ui.recognize.addEventListener("click", () => attempt("Recognizing ...", async () => {
  ui.words.value = (await (await post("v1/audio/reference_text", { reference_audio: clip })).json()).text;
  return "Correct the words if they are wrong.";
}));
for (const input of [ui.text, ui.words, ui.name]) input.addEventListener("input", update);
for (const select of [ui.voice, ui.other]) select.addEventListener("change", update);
ui.address.textContent = new URL("v1", location).href;
loadVoices();
