// The page at /: posts images to the API of the same origin and shows the responses. No build step, nothing fetched from
// elsewhere. Labels and messages come from models that are not trusted: they are only ever set as text.

const byId = (id) => document.getElementById(id);
const element = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
// Relative to the page, so that a path prefix of a reverse proxy is kept.
const base = new URL(".", document.baseURI);
const urlOf = (path) => new URL(path, base);

let models = [];
let lastName = "image.jpg";

function apiHeaders(extra = {}) {
  const key = byId("api-key").value;
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super([error.message ?? `The service responded with status ${status}.`, error.hint].filter(Boolean).join(" "));
    this.status = status;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(urlOf(path), { ...options, headers: apiHeaders(options.headers) });
  } catch {
    throw new Error("The service cannot be reached. Check that it still runs, then try again.");
  }
  const body = await response.json().catch(() => null);
  if (response.status === 401) byId("key-row").hidden = false;
  if (!response.ok) throw new ApiError(response.status, body);
  return body;
}

function query(extra = {}) {
  return new URLSearchParams({ model: byId("model").value, ...extra }).toString();
}

// Models

async function loadModels() {
  const select = byId("model");
  const chosen = select.value;
  try {
    models = (await request("v1/models")).models;
  } catch (error) {
    showStatus(error.message);
    return;
  }
  select.replaceChildren(
    ...models.map((model) => {
      const isReady = model.state === "ready";
      return element("option", {
        value: model.id, textContent: isReady ? model.id : `${model.id} (${model.state})`, disabled: !isReady,
      });
    }),
  );
  if (models.some((model) => model.id === chosen)) select.value = chosen;
  select.disabled = !models.some((model) => model.state === "ready");
  showStatus(models.length ? "" : "No model is loaded.");
  showTask();
  if (models.some((model) => model.state === "loading")) setTimeout(loadModels, 1000);
}

// What a model is for: how an image is sent to it, how the response is shown, and the same from a program.
const TASKS = {
  classify: {
    query: (model) => ({ top_k: between(1, Number(byId("top-k").value) || 5, model.labels.length) }),
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
const chosenModel = () => models.find((model) => model.id === byId("model").value);
const taskName = (model) => (model?.tasks?.[0] in TASKS ? model.tasks[0] : "classify");

function showTask() {
  for (const node of document.querySelectorAll("[data-task]")) node.hidden = node.dataset.task !== taskName(chosenModel());
  showCode();
}

const showStatus = (text) => { byId("status").textContent = text; };

// Images

async function sendFiles(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (images.length < files.length) showStatus("Files that are not images were left out.");
  else showStatus(images.length > 1 ? `Sending ${images.length} images.` : "");
  for (const file of images) {
    lastName = file.name || "image.png";
    const card = addCard(file);
    await send(file, card);
  }
  showCode();
  if (images.length) showStatus(`${images.length} ${images.length > 1 ? "images are" : "image is"} done.`);
}

function addCard(file) {
  const card = byId("result-template").content.cloneNode(true).querySelector(".result");
  const image = card.querySelector("img");
  image.src = URL.createObjectURL(file);
  image.alt = `Chosen image ${file.name}`;
  card.querySelector("h3").textContent = file.name || "Pasted image";
  byId("empty").hidden = true;
  byId("results").prepend(card);
  return card;
}

async function send(file, card) {
  const model = chosenModel(), name = taskName(model), task = TASKS[name];
  try {
    if (!model) throw new Error("No model is ready.");
    const body = await request(`v1/${name}?${query(task.query(model))}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    await task.show(card, body);
    showTiming(card, body);
    if (!task.canExplain) return;
    const button = card.querySelector(".explain");
    button.hidden = false;
    button.addEventListener("click", () => explain(file, card, model.id, button));
  } catch (error) {
    showError(card, error);
  }
}

function showBars(card, rows) {
  card.querySelector(".bars").replaceChildren(
    ...rows.map(({ label, score }) =>
      element("li", {},
        element("span", { className: "label", textContent: label }),
        element("meter", { min: 0, max: 1, value: score, ariaLabel: label }),
        element("span", { className: "score", textContent: `${(100 * score).toFixed(1)} %` })),
    ),
  );
}

function showPredictions(card, body) {
  showBars(card, body.predictions);
}

function showTiming(card, body) {
  const { decode, queue, engine, total } = body.timing_ms;
  const ms = (value) => `${value.toFixed(1)} ms`;
  card.querySelector(".timing").textContent =
    `decode ${ms(decode)}, queue ${ms(queue)}, engine ${ms(engine)}, total ${ms(total)}; batch of ${body.batch_size}; ` +
    `${body.model} at ${body.revision.slice(0, 12)}`;
}

// Detections: boxes, masks and labels over the image, and the same as a list

const COLORS = ["#e6194b", "#2e8b3e", "#0082c8", "#b85c00", "#911eb4", "#008080", "#c71fbe", "#6b6b00", "#8a5a1e", "#000080"];

async function showDetections(card, body) {
  const image = card.querySelector("img"), canvas = card.querySelector(".overlay"), found = body.detections;
  card.classList.add("wide");
  await image.decode();
  showBars(card, found);
  if (!found.length) card.querySelector(".bars").replaceChildren(element("li", { textContent: "Nothing found." }));
  const ratio = window.devicePixelRatio || 1;
  canvas.width = image.clientWidth * ratio;
  canvas.height = image.clientHeight * ratio;
  canvas.classList.add("drawing");
  const context = canvas.getContext("2d");
  const [scaleX, scaleY] = [canvas.width / image.naturalWidth, canvas.height / image.naturalHeight];
  // The most certain object is drawn last, on top.
  for (const each of [...found].reverse()) drawObject(context, each, scaleX, scaleY, ratio);
  canvas.hidden = false;
  const names = found.map(({ label, score }) => `${label} ${score.toFixed(2)}`).join(", ");
  image.alt += `; ${found.length === 1 ? "1 object" : `${found.length} objects`} found${names ? `: ${names}` : ""}`;
}

function drawObject(context, { label, index, score, box, mask }, scaleX, scaleY, ratio) {
  const color = COLORS[index % COLORS.length];
  const [left, top] = [box.xmin * scaleX, box.ymin * scaleY];
  Object.assign(context, { fillStyle: color, strokeStyle: color, lineWidth: 2 * ratio, globalAlpha: 0.4 });
  for (const outline of mask ?? []) {
    context.beginPath();
    for (let place = 0; place < outline.length; place += 2) context.lineTo(outline[place] * scaleX, outline[place + 1] * scaleY);
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeRect(left, top, (box.xmax - box.xmin) * scaleX, (box.ymax - box.ymin) * scaleY);
  const size = 13 * ratio, text = `${label} ${score.toFixed(2)}`;
  context.font = `${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 6 * ratio, height = size + 5 * ratio;
  const x = between(0, left, Math.max(0, context.canvas.width - width)), y = top >= height ? top - height : top;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#ffffff";
  context.fillText(text, x + 3 * ratio, y + size);
}

function showError(card, error) {
  const line = card.querySelector(".error");
  line.textContent = error.message;
  line.hidden = false;
}

// Explanations: the gate of every channel by stage, and Grad-CAM over the part of the image that the network sees

async function explain(file, card, model, button) {
  button.disabled = true;
  try {
    const body = await request(`v1/explain?${new URLSearchParams({ model, gates: "true" })}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    showGates(card.querySelector(".gates"), body.gates);
    showHeat(card, body, models.find((one) => one.id === model));
    button.hidden = true;
  } catch (error) {
    button.disabled = false;
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
      context.fillStyle = color((value - low) / range);
      context.fillRect(channel, 0, 1, 1);
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Gates of ${gate.name}, from ${gate.min.toFixed(2)} to ${gate.max.toFixed(2)}`);
    const caption = `stage ${gate.stage}, ${gate.name}: ${gate.num_channels} channels, mean ${gate.mean.toFixed(3)}, ` +
      `standard deviation ${gate.std.toFixed(3)}, from ${gate.min.toFixed(3)} to ${gate.max.toFixed(3)}`;
    return element("figure", {}, canvas, element("figcaption", { textContent: caption }));
  });
  const none = element("p", { textContent: "This network has no attention." });
  box.replaceChildren(element("h4", { textContent: "Channel gates" }), ...(figures.length ? figures : [none]));
  box.hidden = false;
}

function showHeat(card, body, model) {
  const heat = body.heat, image = card.querySelector("img"), canvas = card.querySelector(".overlay");
  if (!heat.length) return;
  canvas.width = heat[0].length;
  canvas.height = heat.length;
  const context = canvas.getContext("2d");
  heat.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = color(value);
    context.fillRect(x, y, 1, 1);
  }));
  const region = visibleRegion(image.naturalWidth, image.naturalHeight, model);
  // Through the CSSOM, which the Content-Security-Policy allows where a style attribute would not be.
  Object.assign(canvas.style, {
    left: `${100 * region.left}%`, top: `${100 * region.top}%`,
    width: `${100 * region.width}%`, height: `${100 * region.height}%`,
  });
  canvas.hidden = false;
  image.alt += `; the overlay shows the evidence for ${body.prediction.label}`;
}

// The share of the image that is left after resize and center crop, as eca_hub.EvalTransform does them.
function visibleRegion(width, height, model) {
  const { crop, crop_mode: mode, input_px: [inputHeight, inputWidth] } = model;
  if (mode === "squash") return { left: (1 - crop) / 2, top: (1 - crop) / 2, width: crop, height: crop };
  const scale = Math.max(inputWidth / crop / width, inputHeight / crop / height);
  const share = (input, full) => Math.min(1, input / (full * scale));
  const [x, y] = [share(inputWidth, width), share(inputHeight, height)];
  return { left: (1 - x) / 2, top: (1 - y) / 2, width: x, height: y };
}

// From blue over yellow to red, distinguishable without hue by its lightness in the middle.
function color(value) {
  const hue = 240 - 240 * value;
  return `hsl(${hue} 85% ${35 + 35 * (1 - Math.abs(2 * value - 1))}%)`;
}

// Code

const python = JSON.stringify;
const SNIPPETS = {
  classify: {
    curl: (url, model, name) => `curl --data-binary @${shell(name)} '${urlFor(url, model, { top_k: 5 })}'`,
    Python: (url, model, name) => `import eca_hub

classifier = eca_hub.Classifier.from_pretrained(${python(model)})
print(classifier.predict(${python(name)}, top_k=5))`,
    InferenceClient: (url, model, name) => `from huggingface_hub import InferenceClient

client = InferenceClient(model=${python(`${url}models/${model}`)})
print(client.image_classification(${python(name)}))`,
    JavaScript: (url, model) => script(urlFor(url, model, { top_k: 5 }), "predictions"),
  },
  detect: {
    curl: (url, model, name) => `curl --data-binary @${shell(name)} '${urlFor(url, model, minScore())}'`,
    Python: (url, model, name) => `import eca_hub

detector = eca_hub.Detector.from_pretrained(${python(model)})
print(detector.predict(${python(name)}, min_score=${minScore().min_score}))`,
    InferenceClient: (url, model, name) => `from huggingface_hub import InferenceClient

client = InferenceClient(model=${python(`${url}models/${model}`)})
print(client.object_detection(${python(name)}, threshold=${minScore().min_score}))`,
    JavaScript: (url, model) => script(urlFor(url, model, minScore()), "detections"),
  },
};
const TABS = Object.keys(SNIPPETS.classify);
const minScore = () => ({ min_score: TASKS.detect.query(chosenModel()).min_score });
const urlFor = (url, model, options) =>
  `${url}v1/${taskName(chosenModel())}?model=${encodeURIComponent(model)}&${new URLSearchParams(options)}`;
const script = (url, field) => `const body = document.querySelector("input[type=file]").files[0];
const url = ${JSON.stringify(url)};
const { ${field} } = await (await fetch(url, { method: "POST", body })).json();`;
const shell = (name) => `'${name.replaceAll("'", "'\\''")}'`;
let tab = "curl";

function showCode() {
  const snippet = SNIPPETS[taskName(chosenModel())][tab];
  byId("code").firstElementChild.textContent = snippet(base.href, byId("model").value, lastName);
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
  for (const number of [0, 3, 5]) {
    const url = urlOf(`static/samples/${number}.jpg`);
    const button = element("button", { type: "button" }, element("img", { src: url.href, alt: `Sample ${number}` }));
    button.addEventListener("click", async () => {
      const blob = await (await fetch(url)).blob();
      await sendFiles([new File([blob], `sample-${number}.jpg`, { type: "image/jpeg" })]);
    });
    byId("samples").append(button);
  }
}

function listen() {
  for (const input of [byId("files"), byId("camera")]) {
    input.addEventListener("change", async () => { await sendFiles(input.files); input.value = ""; });
  }
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); sendFiles(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) sendFiles(event.clipboardData.files);
  });
  byId("model").addEventListener("change", showTask);
  byId("min-score").addEventListener("change", showCode);
  byId("api-key").addEventListener("change", loadModels);
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
