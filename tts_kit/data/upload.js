"use strict";

/* Sends files, dropped, chosen or recorded, to the server one after another. */

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id, element]));
const token = new URLSearchParams(location.search).get("token");
let recorder = null, sending = Promise.resolve();

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "X-Token": token }, body });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function send(files) {
  for (const file of files) {
    const item = ui.list.appendChild(document.createElement("li"));
    item.textContent = `${file.name} …`;
    ui.done.disabled = true;
    sending = sending.then(async () => {
      try {
        const { name } = await post(`file?name=${encodeURIComponent(file.name)}`, file);
        item.textContent = `${name}, ${(file.size / 2 ** 20).toFixed(1)} MB`;
      } catch (error) {
        item.textContent = `${file.name}: not taken. ${error.message}`;
      }
    });
  }
  const last = sending;
  last.then(() => { ui.done.disabled = last !== sending; });
}

async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false,
      autoGainControl: false } });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", event => parts.push(event.data));
    recorder.addEventListener("stop", () => {
      stream.getTracks().forEach(track => track.stop());
      const suffix = recorder.mimeType.includes("mp4") ? "mp4" : recorder.mimeType.includes("ogg") ? "ogg" : "webm";
      send([new File(parts, `recording.${suffix}`)]);
      recorder = null;
      ui.record.textContent = "Record";
    });
    recorder.start(1000);
    ui.record.textContent = "Stop";
    ui.done.disabled = true;
  } catch (error) {
    ui.message.textContent = `The microphone cannot be used here (${error.message}): open this page in a tab of its own, or `
      + "record with another program and choose the file.";
  }
}

ui.record.addEventListener("click", record);
ui.files.addEventListener("change", () => send(ui.files.files));
ui.done.addEventListener("click", () => post("done").then(() => { ui.drop.textContent = "Done: the notebook goes on."; })
  .catch(error => { ui.message.textContent = error.message; }));
for (const name of ["dragover", "dragleave", "drop"]) ui.drop.addEventListener(name, event => {
  event.preventDefault();
  ui.drop.classList.toggle("over", name === "dragover");
  if (name === "drop") send(event.dataTransfer.files);
});
