/* The page of the speech server: sends the text as any client would, plays the answer and keeps it until the page is closed. */

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id, element]));
/** Results that stay on the page; the memory of older ones is released. */
const MAX_RESULTS = 20;
let request = null, startTime = 0;

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

function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

async function loadVoices() {
  try {
    const voices = (await (await call("v1/voices")).json()).data;
    ui.voice.replaceChildren(...voices.map(voice => {
      const option = element("option", { value: voice.id, textContent: voice.name });
      option.dataset.model = voice.model;
      return option;
    }));
    ui.login.hidden = true;
    ui.error.textContent = "";
    update();
  } catch (error) {
    ui.login.hidden = error.status !== 401;
    ui.error.textContent = error.status === 401 && !ui.key.value ? "This server requires an API key." : error.message;
  }
}

function update() {
  ui.speak.disabled = !request && !(ui.voice.value && ui.text.value.trim());
  ui.speak.textContent = request ? "Stop" : "Speak";
  const length = ui.text.value.length, seconds = Math.floor((performance.now() - startTime) / 1000);
  ui.count.textContent = request ? `${seconds} s` : length ? `${length} of ${ui.text.maxLength}` : "";
  ui.model.textContent = ui.voice.value ? `Model ${model()}. ` : "";
}

function model() {
  return ui.voice.selectedOptions[0].dataset.model;
}

async function speak() {
  const body = { model: model(), input: ui.text.value, voice: ui.voice.value,
    response_format: ui.format.value, seed: Number(ui.seed.value) || 0 };
  request = new AbortController();
  startTime = performance.now();
  ui.error.textContent = "";
  update();
  const timer = setInterval(update, 500);
  try {
    const response = await call("v1/audio/speech", { method: "POST", signal: request.signal, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" } });
    addResult(body, await response.blob(), response.headers.get("X-Ended-With-EOS") === "true");
  } catch (error) {
    if (error.name !== "AbortError") ui.error.textContent = error.message;
  }
  request = null;
  clearInterval(timer);
  update();
}

/** Put a result on top of the list and play it. */
function addResult(body, blob, endedWithEos) {
  const url = URL.createObjectURL(blob);
  const player = element("audio", { controls: true, src: url });
  const name = `${body.voice}-${body.seed}.${body.response_format}`;
  ui.results.prepend(element("li", {}, element("p", { className: "text", dir: "auto", textContent: body.input }), player,
    element("p", { className: "facts" }, `${body.voice}, seed ${body.seed}`,
      endedWithEos ? ". " : ", cut at the length limit without EOS: try another seed. ",
      element("a", { href: url, download: name, textContent: `Download ${body.response_format}` }))));
  while (ui.results.children.length > MAX_RESULTS) {
    URL.revokeObjectURL(ui.results.lastChild.querySelector("audio").src);
    ui.results.lastChild.remove();
  }
  player.play().catch(() => player.focus()); // a browser may require a click first
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
ui.text.addEventListener("input", update);
ui.voice.addEventListener("change", update);
ui.address.textContent = new URL("v1", location).href;
loadVoices();
