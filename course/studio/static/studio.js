// The form, the job that is drawn, and its pictures. All that is shown is set as text or as an attribute, never as HTML.

import { Drawing, square } from "./drawing.js";

const $ = (id) => document.getElementById(id);
const form = $("form"), told = JSON.parse(form.dataset.told);
const PAUSE = 250;                                      // ms between two looks at a job
let job = null;                                         // the id of the one that is waited for
let failures = 0;

// the token has done its work: it is in a cookie, and need not stay in the address or in the history
history.replaceState(null, "", location.pathname);

const drawing = $("canvas") && new Drawing($("canvas"), $("cursor"), () => form.elements.tool.value, () => complain({ hint: "" }));

// ---- asking the server

async function ask(path, method = "GET", body) {
  const answer = await fetch(path, { method, ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) });
  return [answer.ok, await answer.json()];
}

const GONE = "The studio does not answer: was it closed in the terminal? Start it again, and open the address that it prints.";

// ---- the form

function number(id) { const value = $(id).valueAsNumber; return Number.isNaN(value) ? null : value; }

function filled() {
  const loras = {};
  for (const row of document.querySelectorAll(".lora")) {
    if (row.querySelector("[type=checkbox]").checked) loras[row.dataset.name] = row.querySelector("[type=range]").valueAsNumber;
  }
  const steered = $("steer")?.checked && !$("steer").disabled;
  return {
    prompt: $("prompt").value, negative_prompt: $("negative_prompt").value, model: $("model").value, sampler: $("sampler").value,
    steps: number("steps"), guidance: number("guidance"), seed: number("seed"), count: number("count"), loras,
    ...(steered && { control: { name: $("network").value, weight: $("weight").valueAsNumber }, hint: drawing.url() }),
  };
}

// show what is wrong at its field; "" takes a message away
function complain(errors) {
  for (const [name, message] of Object.entries(errors)) {
    const place = $(`e-${name}`) ?? $("e-form"), field = $(name === "hint" ? "canvas" : name);
    place.textContent = message;
    place.hidden = !message;
    if (field && field !== form) message ? field.setAttribute("aria-invalid", "true") : field.removeAttribute("aria-invalid");
  }
}

function clearComplaints() {
  for (const place of document.querySelectorAll(".error[id]")) complain({ [place.id.slice(2)]: "" });
}

function suit() {                                       // the rest of the form, to the chosen model
  const model = told.models[$("model").value];
  $("steps").value = model.steps;
  $("guidance").value = model.guidance;
  $("about").textContent = `${model.size} × ${model.size} pixels · ${model.about}`;
  for (const row of document.querySelectorAll(".lora")) allow(row.querySelector("[type=checkbox]"), model.loras.includes(row.dataset.name));
  if (!drawing) return;
  for (const option of $("network").options) option.disabled = !model.controls.includes(option.value);
  if ($("network").selectedOptions[0]?.disabled) $("network").value = model.controls[0] ?? $("network").value;
  allow($("steer"), model.controls.length > 0);
  drawing.resize(model.size);
}

function allow(box, fits) {
  box.disabled = !fits;
  if (!fits) box.checked = false;
  const label = box.closest("label");
  label.title = fits ? "" : "made for another model";
  label.classList.toggle("dim", !fits);
  box.dispatchEvent(new Event("change", { bubbles: true }));
}

$("model").addEventListener("change", suit);
$("chance").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000; });
for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => { $("prompt").value = button.textContent; $("prompt").focus(); });
}
for (const slider of document.querySelectorAll(".slider input")) {
  slider.addEventListener("input", () => { slider.nextElementSibling.value = slider.valueAsNumber.toFixed(2); });
}
for (const row of document.querySelectorAll(".lora")) {
  const box = row.querySelector("[type=checkbox]");
  box.addEventListener("change", () => { row.querySelector(".slider").hidden = !box.checked; });
}
$("prompt").addEventListener("keydown", (e) => {        // a line break means nothing in a prompt
  if (e.key === "Enter" && !e.isComposing) { e.preventDefault(); form.requestSubmit(); }
});
form.addEventListener("input", (e) => { if (e.target.id) complain({ [e.target.id]: "" }); });

// ---- the drawing

if (drawing) {
  $("steer").addEventListener("change", () => { $("board").hidden = !$("steer").checked; });
  $("undo").addEventListener("click", () => drawing.undo());
  $("clear").addEventListener("click", () => drawing.clear());
  $("save").addEventListener("click", () => { $("save").href = drawing.url(); });
  $("file").addEventListener("change", async () => {
    const file = $("file").files[0];
    $("file").value = "";                               // so that the same file can be chosen again
    if (!file) return;
    try {
      const page = await square(file, drawing.canvas.width);
      if (!$("find").checked) return drawing.put(page);
      const [ok, answer] = await ask("edges", "POST", { picture: page.toDataURL("image/png"), size: page.width });
      if (!ok) return complain(answer.errors ?? { form: answer.error });
      await put(answer.edges);
    } catch { complain({ hint: "No picture can be read from that file: PNG, JPEG and WebP can." }); }
  });
}

async function put(url) {                               // instead of what was drawn
  const image = new Image();
  image.src = url;
  await image.decode();
  drawing.strokes = [];
  drawing.put(image);
}

// ---- one job

form.addEventListener("submit", async (e) => {
  e.preventDefault();
  if (job) return;
  clearComplaints();
  job = "asked";
  try {
    const wish = filled(), [ok, answer] = await ask("jobs", "POST", wish);
    if (!ok) {
      job = null;
      complain(answer.errors ?? { form: answer.error });
      const first = document.querySelector("[aria-invalid=true]");
      return first?.focus();
    }
    job = answer.id;
    begin(wish.prompt);
    await watch(wish.hint);
  } catch { job = null; rest(); complain({ form: GONE }); }
});

$("cancel").addEventListener("click", async () => { if (job) await ask(`jobs/${job}`, "DELETE").catch(() => {}); });

// who leaves does not wait for the picture any more
addEventListener("pagehide", () => { if (job && job !== "asked") fetch(`jobs/${job}`, { method: "DELETE", keepalive: true }); });

function begin(prompt) {
  $("running").hidden = false;
  $("draw").setAttribute("aria-disabled", "true");        // and not disabled: that would take the focus away
  $("bar").removeAttribute("value");
  $("status").textContent = "begins";
  for (const id of ["made", "look", "unread"]) $(id).hidden = true;
  $("title").textContent = prompt;
  $("title").hidden = false;
  $("frame").hidden = $("empty").hidden = false;
  $("pictures").replaceChildren();
  say("Drawing has begun.");
  if (innerWidth < 832) $("stage").scrollIntoView({ block: "start" });
}

function rest() {
  $("draw").removeAttribute("aria-disabled");
  if (document.activeElement === $("cancel")) $("draw").focus();
  $("running").hidden = true;
}

function say(text) { $("said").textContent = text; }   // for who listens; not at every step

async function watch(hint) {
  let quarter = 0, looked = 0;
  failures = 0;
  for (;;) {
    const [ok, now] = await ask(`jobs/${job}`).catch((error) => { if (++failures > 4) throw error; return [true, null]; });
    if (!ok) throw new Error(now.error);
    if (now) {
      failures = 0;
      progress(now);
      if (now.looked > looked) { looked = now.looked; await glimpse(now); }
      if (Math.floor(4 * now.share) > quarter && now.share < 1) { quarter = Math.floor(4 * now.share); say(`${25 * quarter} percent`); }
      if (["done", "failed", "cancelled"].includes(now.state)) return over(now, hint);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

function progress(now) {
  const left = now.left === null ? "" : now.left < 1 ? ", less than a second left" : `, about ${duration(now.left)} left`;
  if (now.share) $("bar").value = now.share;
  $("status").textContent = now.state === "waiting" ? `waits for ${now.before} other${now.before === 1 ? "" : "s"}` :
    now.share === 1 ? "decodes the picture" : now.share ? `step ${Math.round(now.share * now.steps)} of ${now.steps}${left}` : "opens the model";
}

function duration(seconds) { return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`; }

async function glimpse(now) {
  const image = new Image();
  image.src = `jobs/${now.id}/look?step=${now.looked}`;
  try { await image.decode(); } catch { return; }       // it was over before
  $("look").src = image.src;
  $("look").alt = `What the model takes the picture to be after ${now.looked} of ${now.steps} steps`;
  $("look").hidden = false;
  $("empty").hidden = true;
}

function over(now, hint) {
  job = null;
  rest();
  if (now.state !== "done") {
    $("look").hidden = $("title").hidden = true;
    $("empty").hidden = false;
    if (now.state === "failed") complain({ form: now.error }); else say("Cancelled.");
    return;
  }
  const entry = { ...now, hint };
  show(entry);
  remember(entry);
  say(`Done: ${now.pictures.map((p) => `seed ${p.seed}${p.oracle ? `, ${p.oracle}` : ""}`).join("; ")}`);
}

// ---- pictures

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in element ? element[name] = value : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function show(entry) {
  const { asked, pictures } = entry;
  $("frame").hidden = true;
  $("pictures").classList.toggle("one", pictures.length === 1);
  $("pictures").replaceChildren(...pictures.map((picture, i) => card(entry, picture, i)));
  $("title").textContent = asked.prompt;
  // an option and its value stay on one line
  const parts = entry.command.split(/ (?=--)/).map((part) => made("span", { className: part.length < 48 ? "whole" : "" }, part));
  $("command").replaceChildren(...parts.flatMap((part, i) => (i ? [" ", part] : [part])));
  $("needs").hidden = !entry.hint;
  if (entry.hint) $("drawing").href = entry.hint;
  const rows = {
    prompt: asked.prompt, "negative prompt": asked.negative_prompt || "none", model: asked.model, sampler: asked.sampler, steps: asked.steps,
    guidance: asked.guidance, seed: asked.count > 1 ? `${asked.seed} to ${asked.seed + asked.count - 1}` : asked.seed,
    LoRA: asked.loras.map(([name, weight]) => `${name}, weight ${weight}`).join("; ") || "none",
    control: asked.control ? `${asked.control[0]}, weight ${asked.control[1]}` : "none", time: `${entry.seconds.toFixed(1)} s`,
  };
  $("settings").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, String(value))]));
  $("unread").textContent = `Too long for this model, and not read: “${entry.unread}”`;
  $("unread").hidden = !entry.unread;
  $("made").hidden = false;
}

function card(entry, picture, i) {
  const name = entry.asked.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";
  const place = `jobs/${entry.id}/${i}`;
  const image = made("img", { src: `${place}.png`, width: picture.width, height: picture.height,
                              alt: `Drawn for “${entry.asked.prompt}”, seed ${picture.seed}` });
  const buttons = made("div", { className: "buttons" },
    made("a", { className: "button", href: `${place}.png`, download: `${name}-${picture.seed}.png` }, "Download"));
  if (drawing) {
    const again = made("button", { type: "button" }, "Use its edges");
    again.addEventListener("click", async () => {
      await put(`${place}-edges.png`);
      if (!$("steer").disabled) { $("steer").checked = true; $("board").hidden = false; $("canvas").scrollIntoView({ block: "nearest" }); }
    });
    buttons.append(again);
  }
  if (entry.pictures.length > 1) {
    const alone = made("button", { type: "button" }, "Take its seed");
    alone.addEventListener("click", () => { $("seed").value = picture.seed; $("count").value = 1; });
    buttons.append(alone);
  }
  return made("li", {}, image, made("p", { className: "dim" }, `seed ${picture.seed}${picture.oracle ? ` · the oracle reads: ${picture.oracle}` : ""}`), buttons);
}

function remember(entry) {
  const button = made("button", { type: "button", "aria-label": `Show again: ${entry.asked.prompt}, seed ${entry.asked.seed}` },
    made("img", { src: `jobs/${entry.id}/0.png`, alt: "" }));
  button.addEventListener("click", () => { if (!job) { show(entry); current(button); } });
  $("history").prepend(made("li", {}, button));
  while ($("history").children.length > 12) $("history").lastChild.remove();      // the server keeps no more
  $("before").hidden = $("history").children.length < 2;
  current(button);
}

function current(button) {
  for (const other of $("history").querySelectorAll("button")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
}

$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    $("copy").textContent = "Copied";
    say("The command is copied.");
  } catch { getSelection().selectAllChildren($("command")); }          // without the right to write there: Ctrl-C does it
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
});

suit();
