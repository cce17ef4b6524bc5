/* Type and hear: the text goes to the server as any program's would; what comes back is played, and kept until the page is
   closed. */

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map(each => [each.id, each]));
/** Takes that stay on the page; older ones give their memory back. */
const KEPT = 20;
let speaking = null, since = 0;

/** Ask the server; gives its answer, or throws an Error with its sentence. */
async function ask(path, options = {}) {
  const key = part.key.value ? { Authorization: `Bearer ${part.key.value}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, ...key } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Start it again, and reload this page.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.error?.message ?? `The server answers ${answer.status}.`), { status: answer.status });
}

function make(name, settings = {}, ...inside) {
  const made = Object.assign(document.createElement(name), settings);
  made.append(...inside);
  return made;
}

async function enter() {
  try {
    const voices = (await (await ask("v1/voices")).json()).data;
    part.voice.replaceChildren(...voices.map(voice => {
      const option = make("option", { value: voice.id, textContent: voice.name });
      option.dataset.model = voice.model;
      return option;
    }));
    part.door.hidden = true;
    part.said.textContent = "";
    ready();
  } catch (error) {
    part.door.hidden = error.status !== 401;
    part.said.textContent = error.status === 401 && !part.key.value ? "This server wants a key." : error.message;
  }
}

function ready() {
  part.say.disabled = !speaking && !(part.voice.value && part.text.value.trim());
  part.say.textContent = speaking ? "Stop" : "Say it";
  const length = part.text.value.length, seconds = Math.floor((performance.now() - since) / 1000);
  part.count.textContent = speaking ? `${seconds} s` : length ? `${length} of ${part.text.maxLength}` : "";
  part.model.textContent = part.voice.value ? `Model ${model()}. ` : "";
}

function model() {
  return part.voice.selectedOptions[0].dataset.model;
}

async function say() {
  const wanted = { model: model(), input: part.text.value, voice: part.voice.value,
    response_format: part.kind.value, seed: Number(part.seed.value) || 0 };
  speaking = new AbortController();
  since = performance.now();
  part.said.textContent = "";
  ready();
  const clock = setInterval(ready, 500);
  try {
    const answer = await ask("v1/audio/speech", { method: "POST", signal: speaking.signal, body: JSON.stringify(wanted),
      headers: { "Content-Type": "application/json" } });
    keep(wanted, await answer.blob(), answer.headers.get("X-Ended-By-Itself") === "false");
  } catch (error) {
    if (error.name !== "AbortError") part.said.textContent = error.message;
  }
  speaking = null;
  clearInterval(clock);
  ready();
}

/** One more take, the newest first, playing. */
function keep(wanted, blob, ranOut) {
  const address = URL.createObjectURL(blob);
  const player = make("audio", { controls: true, src: address });
  const name = `${wanted.voice}-${wanted.seed}.${wanted.response_format}`;
  const take = make("li", {}, make("p", { className: "text", dir: "auto", textContent: wanted.input }), player,
    make("p", { className: "facts" }, `${wanted.voice}, take ${wanted.seed}`,
      ranOut ? ", ran to its limit: another take may end by itself. " : ". ",
      make("a", { href: address, download: name, textContent: `Download ${wanted.response_format}` })));
  part.takes.prepend(take);
  while (part.takes.children.length > KEPT) {
    URL.revokeObjectURL(part.takes.lastChild.querySelector("audio").src);
    part.takes.lastChild.remove();
  }
  player.play().catch(() => player.focus()); // a browser may want a click first
}

part.form.addEventListener("submit", event => {
  event.preventDefault();
  speaking ? speaking.abort() : say();
});
part.text.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat && !part.say.disabled) {
    event.preventDefault();
    part.form.requestSubmit();
  }
});
part.key.addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  enter();
});
part.enter.addEventListener("click", enter);
part.text.addEventListener("input", ready);
part.voice.addEventListener("change", ready);
part.address.textContent = new URL("v1", location).href;
enter();
