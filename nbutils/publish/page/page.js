// The chat of the page: chat.json says what the model is; llama.cpp (wllama) runs it here, on one thread.
import { Wllama } from "./wllama.js";

const [OPEN, CLOSE] = ["<|im_start|>", "<|im_end|>"];
const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const talk = [];  // {role, text, node}, oldest first
let about, engine, dropped = 0, running = null;  // dropped: messages that are no longer read; running: what stops a reply

const show = (node, shown = true) => { node.hidden = !shown; };
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
const notice = (text = "") => { ui.notice.textContent = text; show(ui.notice, Boolean(text)); };

// ---- what the model reads

// A control token that a text spells becomes ordinary text: llama.cpp would read it as the token itself.
function harmless(text) {
  let plain = text.trim().toWellFormed(), found;
  if (about.composes) plain = plain.normalize("NFC");  // its tokenizer does, and llama.cpp's does not
  while ((found = about.specials.find((token) => plain.includes(token)))) {
    const [first, ...rest] = found;
    plain = plain.replaceAll(found, `${first} ${rest.join("")}`);
  }
  return plain;
}

// All but the last message, which is the reply in the making.
const prompt = () => talk.slice(dropped, -1).map(({ role, text }) => `${OPEN}${role}\n${harmless(text)}${CLOSE}\n`)
  .join("") + `${OPEN}assistant\n`;

// wllama has no call that counts tokens. A prompt that cannot fit is refused before anything is computed, with its size.
async function tokens(text, signal) {
  const filling = about.context + 256;  // llama.cpp rounds the context up to a multiple of that
  try {
    await engine.createCompletion({ prompt: CLOSE.repeat(filling) + text, max_tokens: 1 });
  } catch (error) {
    signal.throwIfAborted();
    const size = /request \((\d+) tokens\) exceeds/.exec(error.message);
    if (size) return Number(size[1]) - filling;
    throw error;
  }
  throw new Error("the length of the conversation cannot be measured");
}

// The rolling window: where a reply would not fit, the oldest turns go until a share of the room is free again.
async function fit(signal) {
  const room = about.context - about.reply, before = dropped;
  let used = await tokens(prompt(), signal);
  if (used > room) {
    while (talk.length - dropped > 2 && used > about.kept * room) {
      dropped += 2;
      used = await tokens(prompt(), signal);
    }
  }
  if (used <= room) return used;
  dropped = before;
  throw new RangeError(`This message is too long: it takes ${used.toLocaleString()} tokens and there is room for `
    + `${room.toLocaleString()}. Shorten it.`);
}

// ---- talking

function add(role, text) {
  const node = document.createElement("article"), who = document.createElement("div"), words = document.createElement("div");
  node.className = `message ${role}`;
  who.className = "who";
  who.textContent = role === "user" ? "You" : about.name;
  words.className = "words";
  words.dir = "auto";
  words.textContent = text;
  node.append(who, words);
  ui.messages.append(node);
  talk.push({ role, text, node });
  return talk.at(-1);
}

function remove(message) {
  message.node.remove();
  talk.splice(talk.indexOf(message), 1);
}

function showContext(used) {
  talk.slice(0, dropped).forEach(({ node }) => {
    if (node.classList.contains("gone")) return;
    node.classList.add("gone");
    node.firstChild.textContent += " · no longer read";
  });
  const gone = dropped / 2;
  ui.meter.textContent = used
    ? `It reads ${used.toLocaleString()} of at most ${about.context.toLocaleString()} tokens`
      + (gone ? `; ${gone} earlier ${gone === 1 ? "turn is" : "turns are"} no longer read.` : ".")
    : `It reads at most ${about.context.toLocaleString()} tokens; then the oldest turns go.`;
}

function busy(stopper) {
  running = stopper;
  ui.send.disabled = Boolean(stopper);
  ui.stop.disabled = !stopper;
}

async function write(reply, text, stopper) {
  let speed = "";
  await engine.createCompletion({
    ...about.sampling,
    ...(ui.greedy.checked ? { temperature: 0 } : { seed: Math.floor(Math.random() * 2 ** 31) }),
    prompt: text,
    max_tokens: about.reply,
    stream: true,
    abortSignal: stopper.signal,
    onData: ({ choices: [choice], timings }) => {
      reply.text += choice?.text ?? "";
      reply.node.lastChild.textContent = reply.text;
      if (timings) speed = ` · ${timings.predicted_n} tokens, ${timings.predicted_per_second.toFixed(1)} a second`;
      if (choice?.finish_reason === "length") speed += ", cut off there";
    },
  });
  return speed;
}

async function say(text) {
  const stopper = new AbortController();
  notice();
  busy(stopper);
  const asked = add("user", text), reply = add("assistant", "");
  reply.node.classList.add("writing");
  try {
    showContext(await fit(stopper.signal));
    reply.node.firstChild.textContent += await write(reply, prompt(), stopper);
    if (!reply.text) reply.node.lastChild.textContent = "(nothing)";
    ui.announce.textContent = `${about.name}: ${reply.node.lastChild.textContent}`;
  } catch (error) {
    if (error.name === "AbortError") {
      reply.node.firstChild.textContent += " · stopped";
    } else if (error instanceof RangeError) {
      [asked, reply].forEach(remove);
      ui.text.value = text;
      notice(error.message);
    } else {
      notice(`The model stopped working (${error.message}). Reload the page to start again.`);
    }
  } finally {
    reply.node.classList.remove("writing");
    if (running === stopper) busy(null);
  }
}

function clear() {
  running?.abort();
  busy(null);
  talk.splice(0);
  dropped = 0;
  ui.messages.replaceChildren();
  notice();
  showContext(0);
  ui.text.focus();
}

ui.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = ui.text.value.trim();
  if (!text || running) return;
  ui.text.value = "";
  say(text);
});
ui.text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;  // 229: Safari
  event.preventDefault();
  ui.form.requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
ui.stop.addEventListener("click", () => running?.abort());
ui.clear.addEventListener("click", clear);

// ---- loading

function runsHere() {
  try {
    return Boolean(new WebAssembly.Memory({ address: "i64", initial: 1n }));
  } catch {
    return false;
  }
}

async function download(name, type) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server says ${answer.status}`);
  const parts = [], reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    ui.progress.value += part.value.length;
    ui.loading.textContent = `${megabytes(ui.progress.value)} of ${megabytes(size())} MB`;
  }
  const blob = new Blob(parts, { type });
  if (blob.size !== about.files[name]) throw new Error(`${name} has ${blob.size} bytes and not ${about.files[name]}`);
  return blob;
}

async function load() {
  ui.load.disabled = true;
  notice();
  show(ui.progress);
  ui.progress.max = size();
  ui.progress.value = 0;
  let made;
  try {
    const program = URL.createObjectURL(await download("wllama.wasm", "application/wasm"));
    const file = await download(about.file, "");
    made = new Wllama({ default: program }, { suppressNativeLog: true, logger: silent });
    made.setCompat(null);  // its substitute for older browsers would come from elsewhere
    ui.progress.removeAttribute("value");
    ui.loading.textContent = "Getting ready …";
    // One thread: more need headers that few static hosts send. Small batches, so that Stop is heard while it reads.
    await made.loadModel([file], { n_ctx: about.context, n_threads: 1, n_gpu_layers: 0, n_parallel: 1, n_batch: 32,
      n_ubatch: 32, cache_type_k: "f32", cache_type_v: "f32" });
  } catch (error) {
    await made?.exit();
    show(ui.progress, false);
    ui.load.disabled = false;
    ui.loading.textContent = "";
    notice(`The model could not be loaded (${error.message}). Check the connection, and try again.`);
    return;
  }
  engine = made;
  show(ui.start, false);
  show(ui.log);
  show(ui.form);
  showContext(0);
  ui.announce.textContent = "The model is ready.";
  ui.text.focus();
}

const silent = Object.fromEntries(["debug", "log", "warn", "error"].map((level) => [level, () => {}]));

const size = () => Object.values(about.files).reduce((sum, bytes) => sum + bytes);

async function begin() {
  ui.serve.remove();
  try {
    about = await (await fetch("chat.json")).json();
  } catch (error) {
    return notice(`chat.json, which says what this model is, cannot be read (${error.message}).`);
  }
  ui.name.textContent = document.title = about.name;
  ui.about.textContent = about.about;
  if (about.models.length) {
    ui.card.href = `https://huggingface.co/${about.models[0]}`;
    show(ui.card);
  }
  if (!runsHere()) {
    return notice("This browser cannot run the model: it lacks 64-bit WebAssembly memory, which a recent Chrome, Edge or "
      + "Firefox has.");
  }
  ui.load.textContent = `Load the model (${megabytes(size())} MB)`;
  ui.load.addEventListener("click", load);
  show(ui.start);
}

begin();
