// Segment: one image, its mask, and a second version beside it.

import { ask, Refusal, sentence, token } from "./api.js";
import { $, announce, count, h, milliseconds, percent, say, swatch } from "./dom.js";
import { draw, segment } from "./masks.js";
import { describe, listModels, loadVersion, servedModels } from "./models.js";

const view = { models: [], file: null, picture: null, results: [], hidden: new Set(["background"]), running: null };

export function prepare() {
  $("file").addEventListener("change", () => $("file").files[0] && open($("file").files[0]));
  for (const name of ["dragover", "dragenter"]) addEventListener(name, dragged);
  addEventListener("dragleave", (event) => !event.relatedTarget && $("drop").classList.remove("over"));
  addEventListener("drop", dropped);
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
    if (file && visible()) open(file);
  });
  $("segment-model").addEventListener("change", () => {
    fillVersions();
    run();
  });
  for (const id of ["segment-version", "segment-other"]) $(id).addEventListener("change", run);
  for (const id of ["opacity", "split"]) $(id).addEventListener("input", redraw);
  $("all-classes").addEventListener("click", () => toggleAll(false));
  $("no-classes").addEventListener("click", () => toggleAll(true));
  $("segment-canvas").addEventListener("pointermove", pointed);
  $("segment-canvas").addEventListener("pointerleave", () => ($("segment-here").textContent = ""));
}

export async function seen() {
  const models = await listModels();
  if (JSON.stringify(models) === JSON.stringify(view.models)) return;
  view.models = models;
  const served = servedModels(models);
  const before = $("segment-model").value;
  $("segment-model").replaceChildren(...served.map((model) => h("option", { value: model.name }, model.name)));
  if (served.some((model) => model.name === before)) $("segment-model").value = before;
  fillVersions();
  if (!served.length) {
    const fault = models.find((model) => model.fault)?.fault;
    say($("segment-status"), fault ?? "No model is served. Start the server with one: cilseg serve NAME.", "error");
  }
}

const visible = () => !$("view-segment").hidden;
const chosen = () => view.models.find((model) => model.name === $("segment-model").value);

function fillVersions() {
  const model = chosen();
  const [first, other] = [$("segment-version").value, $("segment-other").value];
  const rows = [...(model?.versions ?? [])].reverse().filter((row) => !row.damaged);
  const options = () => rows.map((row) => h("option", { value: String(row.version) }, describe(model, row)));
  $("segment-version").replaceChildren(h("option", { value: "" }, "the one that answers"), ...options());
  $("segment-other").replaceChildren(h("option", { value: "" }, "nothing"), ...options());
  for (const [id, value] of [["segment-version", first], ["segment-other", other]]) {
    $(id).value = rows.some((row) => String(row.version) === value) ? value : "";
  }
}

function dragged(event) {
  if (!visible() || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  $("drop").classList.add("over");
}

function dropped(event) {
  $("drop").classList.remove("over");
  if (!visible() || !event.dataTransfer?.files.length) return;
  event.preventDefault();
  open(event.dataTransfer.files[0]);
}

async function open(file) {
  view.file = file;
  view.picture?.close();
  view.picture = await createImageBitmap(file).catch(() => null);
  await run();
}

/** Ask for the mask, or both masks, of the image; a later call overtakes an earlier one. */
async function run() {
  if (!view.file) return;
  view.running?.abort();
  const running = (view.running = new AbortController());
  const model = $("segment-model").value;
  const versions = [$("segment-version").value];
  if ($("segment-other").value) versions.push($("segment-other").value);
  say($("segment-status"), `Segmenting ${view.file.name || "the image"} …`);
  try {
    const results = [];
    for (const version of versions) results.push(await one(model, version, running.signal));
    view.results = results;
    say($("segment-status"), view.picture ? "" : "This browser cannot show the file; you see the mask alone.");
    showResults();
  } catch (error) {
    if (error.name === "AbortError") return;
    view.results = [];
    $("segment-result").hidden = $("segment-figure").hidden = true;
    say($("segment-status"), sentence(error), "error");
  }
}

async function one(model, version, signal) {
  const row = chosen()?.versions.find((known) => String(known.version) === version);
  if (row && !row.loaded) {
    if (token()) {
      say($("segment-status"), `Loading version ${version} …`);
      await loadVersion(model, version);
      await seen();
    } else {
      throw new Refusal(`Version ${version} is not loaded. Give a token with the role promote to load it here.`);
    }
  }
  return segment(ask, view.file, { model, version, signal });
}

function showResults() {
  const [first, second] = view.results;
  $("segment-figure").hidden = $("segment-result").hidden = false;
  $("split-row").hidden = !second;
  if (second) {
    $("split-left").textContent = `Left: version ${first.version}`;
    $("split-right").textContent = `Right: version ${second.version}`;
  }
  $("segment-caption").textContent =
    `${view.file.name || "Image"}, ${first.width_px} × ${first.height_px} px, ` +
    view.results.map((result) => `${result.model}:${result.version}`).join(" and ");
  $("segment-time").replaceChildren(...view.results.map((result) => h("li", {}, timeWords(result))));
  showClasses();
  redraw();
  announce($("segment-canvas").getAttribute("aria-label"));
}

function timeWords(result) {
  const waited = result.queue_s >= 0.0005 ? `, waited ${milliseconds(result.queue_s)}` : "";
  return (
    `${result.model}:${result.version}: ${milliseconds(result.seconds)} there and back; ` +
    `the network ran ${milliseconds(result.run_s)}${waited}.`
  );
}

function showClasses() {
  const share = (result, name) => result?.coverage[name] ?? 0;
  const names = [...new Set(view.results.flatMap((result) => result.names))];
  const most = (name) => Math.max(...view.results.map((result) => share(result, name)));
  names.sort((a, b) => most(b) - most(a));
  const head = view.results.map((result) => h("th", { scope: "col", class: "n" }, `Version ${result.version}`));
  const rows = names.map((name) => {
    const color = view.results.find((result) => result.colors[name]).colors[name];
    const box = h("input", { type: "checkbox", checked: !view.hidden.has(name), "data-class": name });
    box.addEventListener("change", () => {
      if (box.checked) view.hidden.delete(name);
      else view.hidden.add(name);
      redraw();
    });
    const cells = view.results.map((result) =>
      h("td", { class: "n", "data-share": String(share(result, name)) },
        result.names.includes(name) ? percent(share(result, name)) : "not known"));
    return h("tr", { class: most(name) ? "" : "none" },
      h("th", { scope: "row" }, h("label", { class: "check" }, box, swatch(color), name)), cells);
  });
  $("segment-classes").replaceChildren(
    h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"), head)), h("tbody", {}, rows)));
}

function toggleAll(hide) {
  const names = view.results.flatMap((result) => result.names);
  view.hidden = new Set(hide ? names : []);
  showClasses();
  redraw();
}

function redraw() {
  if (!view.results.length) return;
  const canvas = $("segment-canvas");
  const [opacity, split] = [$("opacity").value / 100, $("split").value / 100];
  $("opacity").setAttribute("aria-valuetext", `${$("opacity").value} percent`);
  $("split").setAttribute("aria-valuetext", `${$("split").value} percent of the width`);
  draw(canvas, view.picture, view.results, { hidden: view.hidden, opacity, split });
  canvas.setAttribute("aria-label", view.results.map(canvasWords).join(" "));
}

function canvasWords(result) {
  const found = result.names.filter((name) => name !== "background" && result.coverage[name] > 0);
  found.sort((a, b) => result.coverage[b] - result.coverage[a]);
  const words = found.map((name) => `${name} ${percent(result.coverage[name])}`).join(", ") || "only background";
  return `Version ${result.version} sees ${count(found.length, "class", "classes")}: ${words}.`;
}

/** Say which class is under the pointer. */
function pointed(event) {
  const box = event.target.getBoundingClientRect();
  const [fx, fy] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  const result = view.results.length > 1 && fx >= $("split").value / 100 ? view.results[1] : view.results[0];
  if (!result || fx < 0 || fy < 0 || fx >= 1 || fy >= 1) return;
  const { width, height, ids } = result.mask;
  const id = ids[Math.floor(fy * height) * width + Math.floor(fx * width)];
  $("segment-here").textContent = `Here: ${result.names[id] ?? "void"}`;
}
