// The page at /: posts images to the API of the same origin and shows the responses. No build step, nothing fetched from
// elsewhere. Labels and messages come from models that are not trusted: they are only ever set as text.

import { uprightCopy } from "./orientation.js";

const byId = (id) => document.getElementById(id);
const element = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
// A long text is truncated, with the whole text as a tooltip: the layout of a label of 10,000 characters took seconds.
const truncated = (text, limit = 80) => (text.length > limit ? `${[...text.slice(0, 2 * limit)].slice(0, limit - 1).join("")}…` : text);
const textElement = (name, text, properties = {}) =>
  element(name, { ...properties, textContent: truncated(text), title: text.length > 80 ? text : "" });
// Relative to the page, so that a path prefix of a reverse proxy is kept.
const base = new URL(".", document.baseURI);
const urlOf = (path) => new URL(path, base);

let models = [];
let lastName = "image.jpg";

function apiHeaders(extra = {}) {
  const key = byId("api-key").value;
  // Other characters cannot be sent in a header.
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Error("The API key has characters that are not allowed, such as a space. Paste it again.");
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

class ApiError extends Error {
  constructor(status, body, retryAfterS) {
    const error = body?.error ?? {};
    super(error.message ?? `The service responded with status ${status}.`);
    this.status = status;
    this.hint = error.hint;
    this.requestId = error.request_id;
    this.retryAfterS = retryAfterS;
  }
}

async function request(path, options = {}) {
  const headers = apiHeaders(options.headers);
  let response;
  try {
    response = await fetch(urlOf(path), { ...options, headers });
  } catch {
    // A browser does not send a file that is no longer the one that was chosen.
    const isReadable = await options.body?.slice(0, 1).arrayBuffer().then(() => true, () => false);
    if (isReadable === false) throw new Error("The file has changed or is gone. Choose it again.");
    throw new Error("The service cannot be reached. Check that it still runs, then try again.");
  }
  const body = await response.json().catch(() => null);
  if (response.status === 401) byId("key-row").hidden = false;
  if (!response.ok) throw new ApiError(response.status, body, Number(response.headers.get("Retry-After")) || 1);
  if (!body) throw new Error("The response is not from this service. Check for a proxy or a login page between the browser and the service.");
  return body;
}

// A service that is full refuses with 429 and says when to come back.
async function requestWhenFree(path, options) {
  for (let numLeft = 5; ; numLeft -= 1) {
    try {
      return await request(path, options);
    } catch (error) {
      if (error.status !== 429 || !numLeft) throw error;
      await new Promise((done) => setTimeout(done, 1000 * error.retryAfterS));
    }
  }
}

// Models

let nextLoad;
async function loadModels() {
  clearTimeout(nextLoad);
  let loaded;
  try {
    loaded = (await request("v1/models")).models;
  } catch (error) {
    if (error.status !== 401) showModelStatus([error.message, error.hint].filter(Boolean).join(" "), true);
    else if (byId("api-key").value) showModelStatus("The service does not accept this API key.", true);
    else showModelStatus("Enter the API key of this service.");
    showTask();
    loadModelsAgain();
    return;
  }
  // A select that is open would close when its options are replaced.
  const states = (each) => JSON.stringify(each.map(({ id, state }) => [id, state]));
  const isNew = states(loaded) !== states(models);
  models = loaded;
  loadModelsAgain();
  if (isNew) showModels();
  showModelStatus(models.length ? "" : "No model is loaded.");
  showTask();
}

// Also after a failure, since the service may have restarted.
function loadModelsAgain() {
  clearTimeout(nextLoad);
  if (models.some((model) => ["loading", "updating"].includes(model.state))) nextLoad = setTimeout(loadModels, 1000);
}

// One that is being optimized, or replaced by another commit, serves meanwhile.
const isServing = (model) => ["ready", "updating"].includes(model.state);

function showModels() {
  const select = byId("model"), chosen = select.value;
  select.replaceChildren(
    ...models.map((model) => {
      const isUsable = isServing(model);
      return element("option", {
        value: model.id, textContent: isUsable ? model.id : `${model.id} (${model.state})`, disabled: !isUsable,
      });
    }),
  );
  if (models.some((model) => model.id === chosen)) select.value = chosen;
  select.disabled = !models.some(isServing);
}

// Clears what it has shown before, and nothing else: the models are asked for again and again while one is loading.
let modelStatus = "";
function showModelStatus(text, isError = false) {
  if (text || byId("status").textContent === modelStatus) showStatus(text, isError);
  modelStatus = text;
}

// What a model is for: how an image is sent to it, how the response is shown, and the same from a program.
const TASKS = {
  classify: {
    query: (model) => ({ top_k: between(1, Math.trunc(byId("top-k").value) || 5, model.labels.length) }),
    show: showPredictions,
    canExplain: true,
  },
  detect: {
    query: (model) => ({
      min_score: between(model.min_score, Number(byId("min-score").value), 1),
      ...(model.has_masks ? { masks: "polygon" } : {}),
    }),
    show: showDetections,
    canExplain: false,
  },
};
const between = (low, value, high) => Math.max(low, Math.min(value, high));
// While a model is loading, nothing but its id is known of it.
const servingModel = (id) => models.find((model) => model.id === id && isServing(model));
const chosenModel = () => servingModel(byId("model").value);
const taskName = (model) => (model?.tasks?.[0] in TASKS ? model.tasks[0] : "classify");

function showTask() {
  const model = chosenModel();
  for (const node of document.querySelectorAll("[data-task]")) node.hidden = node.dataset.task !== taskName(model);
  byId("model-info").textContent = model?.labels?.length ? describe(model) : "";
  showCode();
}

function describe(model) {
  const count = model.labels.length, size = model.input_px?.length === 2 ? `, ${model.input_px.join(" × ")} px` : "";
  return `${count} ${count === 1 ? "class" : "classes"}${size}${model.revision ? `, revision ${model.revision.slice(0, 12)}` : ""}`;
}

function showStatus(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

// Images

// Browsers open six connections to one server; one is left for the rest of the page. The service batches the images.
const NUM_AT_ONCE = 5;

async function sendFiles(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  const leftOut = images.length < files.length ? " Files that are not images were left out." : "";
  showStatus(((images.length > 1 ? `Sending ${images.length} images.` : "") + leftOut).trim());
  if (!images.length) return;
  // As it is now, also for the images whose turn comes after another choice.
  const model = chosenModel(), chosen = model && TASKS[taskName(model)].query(model);
  const waiting = images.map((file) => [file, addCard(file), model, chosen]);
  lastName = images.at(-1).name || "image.png";
  showCode();
  let failed = 0;
  const sendInTurn = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) if (!await send(...next)) failed += 1;
  };
  await Promise.all(Array.from({ length: NUM_AT_ONCE }, sendInTurn));
  const done = images.length - failed, words = (number) => `${number} ${number === 1 ? "image" : "images"}`;
  const outcome = failed ? `${words(failed)} failed${done ? `, ${words(done)} done` : ""}.` : `${words(done)} done.`;
  showStatus(outcome + leftOut, failed > 0);
}

function addCard(file) {
  const card = byId("result-template").content.cloneNode(true).querySelector(".result");
  const image = card.querySelector("img");
  image.addEventListener("error", () => card.classList.add("no-preview"));
  image.src = URL.createObjectURL(file);
  // Until the URL is revoked, the browser keeps the file in memory.
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(image.src));
  image.alt = `Chosen image ${truncated(file.name)}`;
  card.querySelector("h3").replaceWith(textElement("h3", file.name || "Pasted image"));
  card.querySelector(".timing").textContent = "Waiting for the service.";
  card.ariaBusy = "true";
  byId("results").prepend(card);
  showEmpty();
  return card;
}

// A file that cannot be read or drawn is shown as the browser shows it, or not at all.
async function showUpright(file, image) {
  const copy = await uprightCopy(file).catch(() => null);
  if (!copy) return;
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(copy);
  await image.decode().catch(() => null);
}

function showEmpty() {
  const isEmpty = !byId("results").childElementCount;
  byId("empty").hidden = !isEmpty;
  byId("clear").hidden = isEmpty;
}

const NOT_READY = "The model is not ready. Wait until it is loaded, or choose another.";

async function send(file, card, model, chosen) {
  const name = taskName(model), task = TASKS[name];
  try {
    if (!model) throw new Error(NOT_READY);
    const [body] = await Promise.all([
      requestWhenFree(`v1/${name}?${new URLSearchParams({ ...chosen, model: model.id })}`, {
        method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
      }),
      showUpright(file, card.querySelector("img")),
    ]);
    await task.show(card, body);
    showTiming(card, body);
    if (task.canExplain) {
      const button = card.querySelector(".explain");
      button.hidden = false;
      button.addEventListener("click", () => explain(file, card, model.id, button));
    }
    return true;
  } catch (error) {
    card.querySelector(".timing").replaceChildren();
    showError(card, error);
    return false;
  } finally {
    card.ariaBusy = "false";
  }
}

function showBars(card, rows) {
  const bars = rows.map(({ label, score }) =>
    element("li", {},
      textElement("span", label, { className: "label" }),
      meter(truncated(label), score),
      element("span", { className: "score", textContent: `${(100 * score).toFixed(1)} %` })));
  card.querySelector(".bars").replaceChildren(...bars);
  return bars;
}

// Not <meter>, which every browser draws in its own way.
function meter(label, share) {
  const bar = element("span");
  bar.style.width = `${100 * share}%`;
  return element("div", {
    className: "meter", role: "meter", ariaLabel: label, ariaValueMin: "0", ariaValueMax: "1", ariaValueNow: String(share),
  }, bar);
}

function showPredictions(card, body) {
  showBars(card, body.predictions);
}

// A strip whose parts are as long as the steps took, and the same in words.
function showTiming(card, body) {
  const ms = (value) => `${value.toFixed(1)} ms`;
  const steps = ["decode", "queue", "engine"];
  const strip = element("div", { className: "strip", ariaHidden: "true" }, ...steps.map((step) => {
    const part = element("span", { className: step });
    part.style.flexGrow = String(body.timing_ms[step]);
    return part;
  }));
  const rest = [`total ${ms(body.timing_ms.total)}`, `batch of ${body.batch_size}`, `${body.model} at ${body.revision.slice(0, 12)}`];
  const words = element("ul", {},
    ...steps.map((step) => element("li", { className: step, textContent: `${step} ${ms(body.timing_ms[step])}` })),
    ...rest.map((text) => element("li", { textContent: text })));
  card.querySelector(".timing").replaceChildren(strip, words);
}

// Detections: boxes, masks and labels over the image, and the same as a list

// One for each object, not for each class: objects of one class that overlap are told apart.
const COLORS = ["#e6194b", "#0082c8", "#2e8b3e", "#b85c00", "#911eb4", "#008080", "#c71fbe", "#6b6b00", "#8a5a1e", "#000080"];
const colorOf = (place) => COLORS[place % COLORS.length];

async function showDetections(card, body) {
  const image = card.querySelector("img"), canvas = card.querySelector(".overlay"), found = body.detections;
  card.classList.add("wide");
  const bars = showBars(card, found);
  if (!found.length) card.querySelector(".bars").replaceChildren(element("li", { textContent: "Nothing found." }));
  bars.forEach((bar, place) => bar.style.setProperty("--object", colorOf(place)));
  // A format that this browser cannot show has no picture to draw on.
  if (!await image.decode().then(() => true, () => false)) return;
  drawObjects(canvas, image, found);
  bars.forEach((bar, place) => {
    bar.addEventListener("pointerenter", () => drawObjects(canvas, image, found, place));
    bar.addEventListener("pointerleave", () => drawObjects(canvas, image, found));
  });
  canvas.hidden = false;
  const names = found.map(({ label, score }) => `${truncated(label, 40)} ${score.toFixed(2)}`).join(", ");
  image.alt += `; ${found.length === 1 ? "1 object" : `${found.length} objects`} found${names ? `: ${names}` : ""}`;
}

// All objects, or the one whose bar the pointer is on.
function drawObjects(canvas, image, found, only = null) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = image.clientWidth * ratio;
  canvas.height = image.clientHeight * ratio;
  canvas.classList.add("drawing");
  const context = canvas.getContext("2d");
  const [scaleX, scaleY] = [canvas.width / image.naturalWidth, canvas.height / image.naturalHeight];
  const drawn = found.map((each, place) => [each, colorOf(place)]).filter((each, place) => only === null || place === only);
  // Names are drawn after all boxes, and the most certain object last, on top.
  for (const [each, color] of drawn.toReversed()) drawOutline(context, each, color, scaleX, scaleY, ratio);
  for (const [each, color] of drawn.toReversed()) drawName(context, each, color, scaleX, scaleY, ratio);
}

function drawOutline(context, { box, mask }, color, scaleX, scaleY, ratio) {
  Object.assign(context, { fillStyle: color, strokeStyle: color, lineWidth: 2 * ratio, globalAlpha: 0.35 });
  for (const outline of mask ?? []) {
    context.beginPath();
    for (let place = 0; place < outline.length; place += 2) context.lineTo(outline[place] * scaleX, outline[place + 1] * scaleY);
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeRect(box.xmin * scaleX, box.ymin * scaleY, (box.xmax - box.xmin) * scaleX, (box.ymax - box.ymin) * scaleY);
}

function drawName(context, { label, score, box }, color, scaleX, scaleY, ratio) {
  const [left, top] = [box.xmin * scaleX, box.ymin * scaleY];
  const size = 13 * ratio, text = `${truncated(label, 40)} ${score.toFixed(2)}`;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 8 * ratio, height = size + 6 * ratio;
  const x = between(0, left - ratio, Math.max(0, context.canvas.width - width));
  const y = top >= height ? top - height : Math.min(top, context.canvas.height - height);
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#ffffff";
  context.fillText(text, x + 4 * ratio, y + size);
}

function showError(card, error) {
  const lines = [element("strong", { textContent: error.message })];
  if (error.hint) lines.push(element("p", { textContent: error.hint }));
  if (error.requestId) lines.push(element("p", { className: "hint", textContent: `Request ${error.requestId}` }));
  const box = card.querySelector(".error");
  box.replaceChildren(...lines);
  box.hidden = false;
}

// Explanations: the gate of every channel by stage, and Grad-CAM over the part of the image that the network sees

async function explain(file, card, id, button) {
  // A button that is disabled, or hidden, loses the keyboard's focus.
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  try {
    const model = servingModel(id);
    if (!model) throw new Error(NOT_READY);
    const body = await requestWhenFree(`v1/explain?${new URLSearchParams({ model: id, gates: "true" })}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    showGates(card.querySelector(".gates"), body.gates);
    showHeat(card, body, model);
    card.querySelector(".error").hidden = true;
    if (document.activeElement === button) card.querySelector(".heat-switch:not([hidden]), .gates").focus();
    button.hidden = true;
    showStatus("Explained.");
  } catch (error) {
    button.ariaDisabled = "false";
    showError(card, error);
  }
}

function showGates(box, gates) {
  const figures = gates.map((gate) => {
    const values = gate.values ?? [];
    const canvas = element("canvas", { width: Math.max(values.length, 1), height: 1 });
    const context = canvas.getContext("2d");
    const low = Math.min(...values), range = Math.max(...values) - low || 1;
    values.forEach((value, channel) => {
      context.fillStyle = color(VIRIDIS, (value - low) / range);
      context.fillRect(channel, 0, 1, 1);
    });
    const statistics = `${gate.num_channels} channels, mean ${gate.mean.toFixed(3)}, standard deviation ${gate.std.toFixed(3)}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Gates of ${gate.name}: ${statistics}, from ${gate.min.toFixed(3)} to ${gate.max.toFixed(3)}`);
    const caption = element("figcaption", {},
      element("span", { textContent: `stage ${gate.stage}, ${gate.name}` }),
      element("span", { textContent: `${gate.min.toFixed(3)} to ${gate.max.toFixed(3)}` }));
    return element("figure", { title: statistics }, caption, canvas);
  });
  const about = figures.length
    ? "A strip for each attention and a cell for each of its channels: bright channels are passed on, dark ones held back. " +
      "The colors span the range of each strip."
    : "This network has no attention.";
  box.replaceChildren(
    element("h4", { textContent: "Channel gates" }),
    element("p", { className: "hint", textContent: about }),
    element("div", { className: "strips" }, ...figures));
  box.hidden = false;
}

function showHeat(card, body, model) {
  const heat = body.heat, image = card.querySelector("img"), canvas = card.querySelector(".overlay");
  if (!heat.length) return;
  canvas.width = heat[0].length;
  canvas.height = heat.length;
  const context = canvas.getContext("2d");
  heat.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = color(INFERNO, value, .8 * value);
    context.fillRect(x, y, 1, 1);
  }));
  const region = visibleRegion(image.naturalWidth, image.naturalHeight, model);
  // Through the CSSOM, which the Content-Security-Policy allows where a style attribute would not be.
  Object.assign(canvas.style, {
    left: `${100 * region.left}%`, top: `${100 * region.top}%`,
    width: `${100 * region.width}%`, height: `${100 * region.height}%`,
  });
  canvas.hidden = false;
  const button = card.querySelector(".heat-switch");
  button.hidden = false;
  button.addEventListener("click", () => {
    canvas.hidden = !canvas.hidden;
    button.setAttribute("aria-pressed", String(!canvas.hidden));
  });
  image.alt += `; the overlay shows the evidence for ${truncated(body.prediction.label)}`;
}

// The share of the image that is left after resize and center crop, as eca_hub.EvalTransform does them; with a border,
// the input reaches beyond the image.
function visibleRegion(width, height, model) {
  const { crop, crop_mode: mode, input_px: [inputHeight, inputWidth] } = model;
  if (mode === "squash") return { left: (1 - crop) / 2, top: (1 - crop) / 2, width: crop, height: crop };
  const scales = [inputWidth / crop / width, inputHeight / crop / height];
  const scale = mode === "border" ? Math.min(...scales) : Math.max(...scales);
  const share = (input, full) => (mode === "border" ? input / (full * scale) : Math.min(1, input / (full * scale)));
  const [x, y] = [share(inputWidth, width), share(inputHeight, height)];
  return { left: (1 - x) / 2, top: (1 - y) / 2, width: x, height: y };
}

// Stops of matplotlib's color maps, which are read without hue as well, by their lightness.
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const INFERNO = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

function color(stops, value, opacity = 1) {
  const place = between(0, value, 1) * (stops.length - 1), index = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[index].map((low, part) => Math.round(low + (place - index) * (stops[index + 1][part] - low)));
  return `rgb(${mixed.join(" ")} / ${opacity})`;
}

// Code

// Line breaks and bidirectional control characters would make code look different from what it does.
const CONTROL = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu;
const escaped = (text) => text.replace(CONTROL, (each) => `\\u${each.codePointAt(0).toString(16).padStart(4, "0")}`);
// A string of Python and of JavaScript.
const quoted = (text) => escaped(JSON.stringify(text));
const SNIPPETS = {
  classify: {
    curl: (url, model, name) => curl(name, urlFor(url, model, topK())),
    Python: (url, model, name) => `import eca_hub

classifier = eca_hub.Classifier.from_pretrained(${quoted(model)})
print(classifier.predict(${quoted(name)}, top_k=${topK().top_k}))`,
    InferenceClient: (url, model, name) => `from huggingface_hub import InferenceClient

client = InferenceClient(model=${quoted(`${url}models/${model}`)}${needsKey() ? ', token="YOUR KEY"' : ""})
print(client.image_classification(${quoted(name)}))`,
    JavaScript: (url, model) => script(urlFor(url, model, topK()), "predictions"),
  },
  detect: {
    curl: (url, model, name) => curl(name, urlFor(url, model, minScore())),
    Python: (url, model, name) => `import eca_hub

detector = eca_hub.Detector.from_pretrained(${quoted(model)})
print(detector.predict(${quoted(name)}, min_score=${minScore().min_score}))`,
    InferenceClient: (url, model, name) => `from huggingface_hub import InferenceClient

client = InferenceClient(model=${quoted(`${url}models/${model}`)}${needsKey() ? ', token="YOUR KEY"' : ""})
print(client.object_detection(${quoted(name)}, threshold=${minScore().min_score}))`,
    JavaScript: (url, model) => script(urlFor(url, model, minScore()), "detections"),
  },
};
const TABS = Object.keys(SNIPPETS.classify);
const topK = () => (chosenModel() ? TASKS.classify.query(chosenModel()) : { top_k: 5 });
const minScore = () => ({ min_score: TASKS.detect.query(chosenModel()).min_score });
const urlFor = (url, model, options) =>
  `${url}v1/${taskName(chosenModel())}?model=${encodeURIComponent(model)}&${new URLSearchParams(options)}`;
const script = (url, field) => `const body = document.querySelector("input[type=file]").files[0];
const url = ${quoted(url)};
const response = await fetch(url, { method: "POST", body${needsKey() ? ', headers: { Authorization: "Bearer YOUR KEY" }' : ""} });
const { ${field} } = await response.json();`;
// The lines hold a place for the key, never the key itself: they are copied to where others read them.
const needsKey = () => !byId("key-row").hidden;
const curlKey = () => (needsKey() ? '-H "Authorization: Bearer $ECA_API_KEY" ' : "");
const curl = (name, url) => `curl ${curlKey()}--data-binary @${shell(name)} \\\n  ${shell(url)}`;
const shell = (name) => (name.search(CONTROL) < 0
  ? `'${name.replaceAll("'", "'\\''")}'`
  : `$'${escaped(name.replace(/['\\]/g, "\\$&"))}'`);
let tab = "curl";

function showCode() {
  const snippet = SNIPPETS[taskName(chosenModel())][tab];
  byId("code").firstElementChild.textContent = snippet(base.href, byId("model").value || "OWNER/NAME", lastName);
  for (const button of byId("tabs").children) {
    const isSelected = button.textContent === tab;
    button.setAttribute("aria-selected", String(isSelected));
    button.tabIndex = isSelected ? 0 : -1;
  }
}

function addTabs() {
  byId("tabs").append(...TABS.map((name) => {
    const button = element("button", { type: "button", textContent: name });
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", "code");
    button.addEventListener("click", () => { tab = name; showCode(); });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      tab = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
      showCode();
      byId("tabs").querySelector('[aria-selected="true"]').focus();
    });
    return button;
  }));
}

// Samples, drop, paste, theme

function addSamples() {
  for (const name of ["pineapple", "papaya", "aubergine"]) {
    const url = urlOf(`static/samples/${name}.jpg`);
    const button = element("button", { type: "button" }, element("img", { src: url.href, alt: `Sample: ${name}` }));
    button.addEventListener("click", async () => {
      const response = await fetch(url).catch(() => null), blob = response?.ok && await response.blob().catch(() => null);
      if (blob) await sendFiles([new File([blob], `${name}.jpg`, { type: "image/jpeg" })]);
      else showStatus("The sample cannot be fetched. Check that the service still runs, then try again.", true);
    });
    byId("samples").append(button);
  }
}

function listen() {
  for (const input of [byId("files"), byId("camera")]) {
    input.addEventListener("change", async () => { await sendFiles(input.files); input.value = ""; });
  }
  // Files are accepted anywhere on the page: without a handler, the browser navigates to the file.
  let depth = 0;
  const showOver = (change) => byId("drop").classList.toggle("over", (depth = change && depth + change) > 0);
  document.addEventListener("dragenter", (event) => { event.preventDefault(); showOver(1); });
  document.addEventListener("dragleave", () => showOver(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    showOver(0);
    if (event.dataTransfer.files.length) sendFiles(event.dataTransfer.files);
    else showStatus("What was dropped is not a file. Save the image first, then drop the file.", true);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) sendFiles(event.clipboardData.files);
  });
  byId("model").addEventListener("change", showTask);
  for (const name of ["top-k", "min-score"]) byId(name).addEventListener("change", showCode);
  byId("clear").addEventListener("click", () => {
    byId("results").replaceChildren();
    showEmpty();
    showStatus("");
    byId("files").focus();
  });
  byId("api-key").addEventListener("change", loadModels);
  // Enter has changed the field already; the policy allows no form to be sent.
  byId("key-row").addEventListener("submit", (event) => event.preventDefault());
  // Browsers offer the clipboard to pages of https and of this machine only.
  byId("copy").hidden = !navigator.clipboard;
  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("code").textContent);
      showStatus("Copied.");
    } catch {
      showStatus("The browser does not allow this page to copy. Select the lines and copy them by hand.", true);
    }
  });
  byId("theme").addEventListener("click", () => setDark(!document.documentElement.classList.contains("dark")));
}

function setDark(isDark) {
  document.documentElement.classList.toggle("dark", isDark);
  byId("theme").setAttribute("aria-pressed", String(isDark));
}

setDark(window.matchMedia("(prefers-color-scheme: dark)").matches);
addTabs();
addSamples();
listen();
loadModels();
