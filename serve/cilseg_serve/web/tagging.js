// Tag: images of an allowed folder with the model's mask, three states per class, a list that `cilseg update` reads.

import { ask, askJson, filePath, part, Refusal, sentence } from "./api.js";
import { $, announce, count, h, isTyping, percent, say, swatch } from "./dom.js";
import { draw, segment } from "./masks.js";
import { classesOf, listModels, servedModels } from "./models.js";
import { STATES, TagList } from "./tags.js";
import * as updates from "./updates.js";

const PAGE = 200;
const MAX_SIDE_PX = 1024;
const work = {
  models: [], known: [], list: null, name: "", etag: null, files: [], next: null, at: 0, shown: null, cache: new Map(),
};

export function prepare() {
  updates.prepare();
  $("tag-open").addEventListener("click", () => attempt(open));
  $("tag-add").addEventListener("submit", addClass);
  $("tag-previous").addEventListener("click", () => go(work.at - 1));
  $("tag-next").addEventListener("click", () => go(work.at + 1));
  $("tag-undo").addEventListener("click", undo);
  $("tag-rest").addEventListener("click", restAbsent);
  $("tag-save").addEventListener("click", () => attempt(save));
  $("tag-start").addEventListener("click", () => attempt(start));
  $("tag-mask").addEventListener("change", paint);
  $("tag-untagged").addEventListener("change", () => attempt(async () => { await firstPage(); await go(0); }));
  addEventListener("keydown", pressed);
  addEventListener("beforeunload", (event) => work.list && !work.list.saved && event.preventDefault());
}

export async function seen() {
  const [roots, models, lists] = await Promise.all([askJson("v1/images"), listModels(), askJson("v1/tags")]);
  work.models = models;
  fill("tag-root", roots.map((root) => root.name));
  fill("tag-model", servedModels(models).map((model) => model.name));
  $("tag-lists").replaceChildren(...lists.map((list) => h("option", { value: list.name })));
  if (!$("tag-list").value) $("tag-list").value = lists[0]?.name ?? "new-classes";
  $("tag-open").disabled = !roots.length;
  if (!roots.length) say($("tag-status"), "There are no images to tag. Start the server with a folder: cilseg serve --images DIR.");
  await updates.refresh();
}

function fill(id, names) {
  const before = $(id).value;
  $(id).replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) $(id).value = before;
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say($("tag-status"), sentence(error), "error");
  }
}

const model = () => work.models.find((known) => known.name === $("tag-model").value && known.served);

async function open() {
  if (work.list && !work.list.saved && !confirm("There are tags that are not saved. Leave them?")) return;
  const name = $("tag-list").value.trim();
  if (!name) throw new Refusal("Give the tag list a name.");
  let [list, etag] = [new TagList($("tag-root").value), null];
  if ((await askJson("v1/tags")).some((known) => known.name === name)) {
    const answer = await ask(`v1/tags/${part(name)}`);
    list = TagList.read(await answer.json());
    etag = answer.headers.get("ETag");
  }
  work.known = model() ? await classesOf(model()) : [];
  Object.assign(work, { list, etag, name, cache: new Map() });
  if (![...$("tag-root").options].some((option) => option.value === list.root)) {
    throw new Refusal(`Tag list ${name} is about the image folder ${list.root}, which this server does not have.`);
  }
  $("tag-root").value = list.root;
  say($("tag-status"), etag ? `Tag list ${name} was opened: ${count(list.images.size, "image")}.` : `${name} is a new tag list.`);
  $("tag-work").hidden = false;
  await firstPage();
  await go(0);
  $("tag-next").focus();
}

async function firstPage() {
  if (!work.list) return;
  Object.assign(work, { files: [], next: "", at: 0 });
  await morePages();
}

/** Read on until there is something to show. Which images are tagged is known here: the server has only what was saved. */
async function morePages() {
  const before = work.files.length;
  while (work.next !== null && work.files.length === before) {
    const query = new URLSearchParams({ limit: PAGE, after: work.next });
    const page = await askJson(`v1/images/${part(work.list.root)}?${query}`);
    const wanted = page.images.map((image) => image.file);
    work.files.push(...wanted.filter((file) => !$("tag-untagged").checked || !work.list.isTagged(file)));
    work.next = page.next;
    work.total = page.total;
  }
}

/** Show image number `at`. */
async function go(at) {
  await attempt(async () => {
    if (at >= work.files.length) await morePages();
    if (!work.files.length) {
      work.shown = null;
      const all = work.total ? "Every image of the folder is tagged." : "The folder has no images.";
      $("tag-caption").textContent = all;
      showClasses();
      return;
    }
    if (at < 0 || at >= work.files.length) {
      announce(at < 0 ? "This is the first image." : "This is the last image.");
      return;
    }
    work.at = at;
    const file = work.files[at];
    work.shown = { file, picture: null, result: null };
    showClasses();
    caption(file, "loading …");
    const shown = await load(file);
    if (work.files[work.at] !== file) return;
    work.shown = shown;
    caption(file, shown.fault ?? "");
    showClasses();
    paint();
    for (const near of [at + 1]) if (near < work.files.length) load(work.files[near]).catch(() => {});
  });
}

function caption(file, more) {
  const place = `${work.at + 1} of ${work.files.length}${work.next === null ? "" : "+"}`;
  $("tag-caption").textContent = [file, place, more].filter(Boolean).join(" · ");
}

/** An image and what the model sees in it; the last few are kept. */
function load(file) {
  if (!work.cache.has(file)) {
    if (work.cache.size > 12) {
      const [oldest] = work.cache.keys();
      work.cache.delete(oldest);
    }
    const promise = fetchImage(file);
    work.cache.set(file, promise);
    promise.catch(() => work.cache.delete(file));
  }
  return work.cache.get(file);
}

async function fetchImage(file) {
  const answer = await ask(`v1/images/${part(work.list.root)}/${filePath(file)}?max_side=${MAX_SIDE_PX}`);
  const blob = await answer.blob();
  const picture = await createImageBitmap(blob);
  if (!model()) return { file, picture, result: null, fault: "no model is served, so there is no mask" };
  try {
    return { file, picture, result: await segment(ask, blob, { model: model().name }) };
  } catch (error) {
    return { file, picture, result: null, fault: `no mask: ${sentence(error)}` };
  }
}

function paint() {
  const { picture, result, file } = work.shown ?? {};
  if (!picture) return;
  const results = result && $("tag-mask").checked ? [result] : [];
  draw($("tag-canvas"), picture, results, { hidden: new Set(["background"]), opacity: 0.55, split: 1 });
  const sees = (result?.names ?? []).filter((name) => name !== "background" && result.coverage[name] > 0);
  const words = result ? `The model sees ${sees.map((n) => `${n} ${percent(result.coverage[n])}`).join(", ") || "none of its classes"}.` : "";
  $("tag-canvas").setAttribute("aria-label", `${file}. ${words}`);
}

/** New classes first, then those the model knows; keys 1 to 9 are the first nine. */
function names() {
  const fresh = work.list.classes.map((entry) => entry.name);
  return [...fresh, ...work.known.map((entry) => entry.name).filter((name) => !fresh.includes(name))];
}

function showClasses() {
  const focused = document.activeElement?.dataset?.tag;
  const coverage = work.shown?.result?.coverage ?? {};
  const fresh = new Set(work.list.classes.map((entry) => entry.name));
  const rows = names().map((name, index) => {
    const color = work.known.find((entry) => entry.name === name)?.color;
    const state = work.shown ? work.list.state(work.shown.file, name) : "unknown";
    const radios = ["present", "absent", "unknown"].map((value) => h("label", { class: `state ${value}` },
      h("input", {
        type: "radio", name: `tag-${index}`, value, checked: state === value, disabled: !work.shown,
        "data-tag": `${name}:${value}`, onchange: () => change({ [name]: value }),
      }), value));
    const key = index < 9 ? h("kbd", { "aria-hidden": "true" }, String(index + 1)) : null;
    const sees = coverage[name] > 0 ? h("span", { class: "hint" }, `model: ${percent(coverage[name])}`) : null;
    const remove = fresh.has(name) && h("button", {
      type: "button", class: "quiet small", "aria-label": `Remove the class ${name}`, onclick: () => removeClass(name),
    }, "Remove");
    return h("fieldset", { class: `tag ${state}`, "data-class": name },
      h("legend", {}, key, color && swatch(color), name, fresh.has(name) && h("span", { class: "badge wait" }, "new"), sees),
      h("div", { class: "states" }, radios, remove));
  });
  $("tag-classes").replaceChildren(...rows);
  if (!rows.length) $("tag-classes").append(h("p", { class: "hint" }, "Add the class that the model has to learn."));
  if (focused) $("tag-classes").querySelector(`[data-tag="${CSS.escape(focused)}"]`)?.focus();
  $("tag-undo").disabled = !work.list.past.length;
  $("tag-rest").disabled = !work.shown || !rows.length;
  showCounts();
}

function showCounts() {
  const rows = names().map((name) => h("tr", {},
    h("th", { scope: "row" }, name),
    h("td", { class: "n" }, String(work.list.count(name, "present"))),
    h("td", { class: "n" }, String(work.list.count(name, "absent")))));
  const head = h("tr", {}, h("th", { scope: "col" }, "Class"), h("th", { scope: "col", class: "n" }, "present"),
    h("th", { scope: "col", class: "n" }, "absent"));
  $("tag-counts").replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
  $("tag-advice").replaceChildren(...work.list.advice().map((line) => h("li", {}, line)));
  $("tag-saved").textContent = work.list.saved ? "Saved." : "Not saved yet.";
}

function change(changes) {
  if (!work.shown) return;
  work.list.set(work.shown.file, changes);
  showClasses();
  announce(Object.entries(changes).map(([name, state]) => `${name}: ${state}`).join(", "));
}

function cycle(index) {
  const name = names()[index];
  if (!name || !work.shown) return;
  const state = STATES[(STATES.indexOf(work.list.state(work.shown.file, name)) + 1) % STATES.length];
  change({ [name]: state });
}

function restAbsent() {
  if (!work.shown) return;
  const open = names().filter((name) => work.list.state(work.shown.file, name) === "unknown");
  if (open.length) change(Object.fromEntries(open.map((name) => [name, "absent"])));
}

async function undo() {
  const file = work.list.undo();
  if (file === null) return;
  announce("Undone.");
  const at = work.files.indexOf(file);
  if (at >= 0 && at !== work.at) await go(at);
  showClasses();
}

function addClass(event) {
  event.preventDefault();
  const name = $("tag-new").value.normalize("NFC").trim();
  if (!name) return;
  if (name === "background" || names().includes(name)) {
    say($("tag-status"), `There is a class ${name} already.`, "error");
    return;
  }
  work.list.addClass(name);
  $("tag-new").value = "";
  say($("tag-status"), "");
  showClasses();
  announce(`Class ${name} was added; its key is ${names().indexOf(name) + 1}.`);
}

function removeClass(name) {
  work.list.removeClass(name);
  showClasses();
  $("tag-new").focus();
  announce(`Class ${name} was removed with its tags.`);
}

async function save() {
  if (!work.list) return;
  const document = work.list.toDocument();
  const answer = await askJson(`v1/tags/${part(work.name)}`, {
    method: "PUT", json: document, headers: { "If-Match": work.etag ?? '""' },
  });
  work.etag = `"${answer.etag}"`;
  work.list.saved = JSON.stringify(document) === JSON.stringify(work.list.toDocument());
  say($("tag-status"), `Tag list ${answer.name} was saved: ${count(answer.images, "image")}.`);
  showCounts();
}

async function start() {
  if (!work.list.saved || !work.etag) await save();
  const options = { model: $("tag-model").value || undefined, on_regression: $("tag-fuse").checked ? "fuse" : undefined };
  const job = await askJson("v1/updates", { method: "POST", json: { tag_list: work.name, options } });
  say($("tag-status"), "The update was queued; its progress stands below.");
  await updates.watch(job.id);
}

function pressed(event) {
  if ($("view-tag").hidden || !work.list || !$("tag-keys").checked || isTyping(event.target)) return;
  const undoKeys = (event.ctrlKey || event.metaKey) && event.key === "z";
  if ((event.ctrlKey || event.metaKey || event.altKey) && !undoKeys) return;
  const actions = {
    n: () => go(work.at + 1), p: () => go(work.at - 1), u: undo, z: undo, s: () => attempt(save), 0: restAbsent,
  };
  const action = /^[1-9]$/.test(event.key) ? () => cycle(Number(event.key) - 1) : actions[event.key.toLowerCase()];
  if (!action || (event.key === "z" && !undoKeys)) return;
  event.preventDefault();
  action();
}
