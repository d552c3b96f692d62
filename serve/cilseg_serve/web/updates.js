// Updates: which there are, and one of them live: state, progress, log, and the gate's report when it is done.

import { ask, askJson, part, sentence } from "./api.js";
import { $, count, h, say, when } from "./dom.js";
import { reportLink } from "./report.js";

const POLL_MS = 1000;
const LOG_CHARACTERS = 200_000;
const OVER = ["done", "failed", "cancelled"];
const watching = { id: null, stop: null, state: null };

export function prepare() {
  $("updates-again").addEventListener("click", refresh);
  document.addEventListener("token-changed", () => watching.id && watch(watching.id));
}

export async function refresh() {
  try {
    const jobs = await askJson("v1/updates");
    $("updates").replaceChildren(...jobs.slice(0, 20).map(row));
    if (!jobs.length) $("updates").append(h("li", { class: "hint" }, "There was no update yet."));
    say($("updates-status"), "");
  } catch (error) {
    say($("updates-status"), sentence(error), "error");
  }
}

const KINDS = { done: "good", failed: "bad", cancelled: "none", queued: "wait", running: "wait" };
const VERDICTS = { PROMOTE: "good", HOLD: "wait", REJECT: "bad" };

function row(job) {
  const source = job.source.name ? `${job.source.name}, ` : "";
  return h("li", { class: "card", "data-update": job.id },
    h("div", { class: "heading" },
      h("h3", {}, job.candidate ?? `Update of ${when(job.created_at)}`),
      h("span", { class: "badges" },
        h("span", { class: `badge ${KINDS[job.state]}` }, job.state),
        job.verdict && h("span", { class: `badge ${VERDICTS[job.verdict] ?? "none"}` }, `Gate: ${job.verdict}`))),
    h("p", { class: "hint" }, `${source}${count(job.images, "image")}, asked ${when(job.created_at)}`),
    h("div", { class: "row" },
      h("button", { type: "button", "aria-label": `Watch the update of ${when(job.created_at)}`, onclick: () => watch(job.id) }, "Watch"),
      job.report && reportLink(job.report.slice(1), job.candidate)));
}

/** Follow one update until it is over. */
export async function watch(id) {
  watching.stop?.abort();
  const stop = (watching.stop = new AbortController());
  Object.assign(watching, { id, state: null });
  $("update-watch").hidden = false;
  $("watch-log").textContent = "";
  $("watch-advice").replaceChildren();
  $("watch-heading").textContent = `Update ${id}`;
  $("update-watch").scrollIntoView({ block: "nearest" });
  followLog(id, stop.signal);
  try {
    for (;;) {
      const job = await askJson(`v1/updates/${part(id)}`, { signal: stop.signal });
      show(job);
      if (OVER.includes(job.state)) {
        await showAdvice(job);
        await refresh();
        return;
      }
      await pause(POLL_MS, stop.signal);
    }
  } catch (error) {
    if (error.name !== "AbortError") say($("watch-state"), sentence(error), "error");
  }
}

function show(job) {
  const words = describe(job);
  if ($("watch-state").textContent !== words) say($("watch-state"), words, job.state === "failed" ? "error" : "info");
  const { progress } = job;
  const bar = $("watch-progress");
  bar.hidden = job.state !== "running";
  if (progress?.epochs && progress.epoch !== null) Object.assign(bar, { max: progress.epochs, value: progress.epoch });
  else bar.removeAttribute("value");
  if (watching.state === job.state) return;
  watching.state = job.state;
  const act = (verb) => async () => {
    try {
      await askJson(`v1/updates/${part(job.id)}/${verb}`, { method: "POST" });
      await (verb === "resume" ? watch(job.id) : undefined);
    } catch (error) {
      say($("watch-state"), sentence(error), "error");
    }
  };
  $("watch-links").replaceChildren(
    ...[
      !OVER.includes(job.state) && h("button", { type: "button", onclick: act("cancel") }, "Cancel the update"),
      ["failed", "cancelled"].includes(job.state) && h("button", { type: "button", onclick: act("resume") }, "Resume the update"),
      job.report && reportLink(job.report.slice(1), job.candidate),
      job.candidate && h("a", { href: "#registry" }, `Promote ${job.candidate} in the registry`),
    ].filter(Boolean));
  refresh();
}

function describe(job) {
  if (job.state === "queued") return "It waits for its turn; one update runs at a time.";
  if (job.state === "running") {
    const { progress } = job;
    if (!progress) return "It runs; training has not begun yet.";
    const epochs = progress.epochs ? ` of ${progress.epochs}` : "";
    const epoch = progress.epoch === null ? "" : `, epoch ${progress.epoch + 1}${epochs}`;
    const [loss] = Object.entries(progress.losses ?? {}).filter(([, value]) => typeof value === "number");
    return `It trains: iteration ${progress.iteration}${epoch}${loss ? `, ${loss[0]} ${loss[1].toFixed(3)}` : ""}.`;
  }
  if (job.state === "done") {
    const verdict = job.verdict ? ` The gate says ${job.verdict}${job.headline ? `: ${job.headline}` : ""}` : "";
    return `It is done: ${job.candidate}.${verdict}`;
  }
  if (job.state === "cancelled") return "It was cancelled; it can be resumed.";
  return `It failed: ${job.error ?? "the log says why."}`;
}

/** What the gate advises to tag next; a report without it, or none, is no error. */
async function showAdvice(job) {
  if (!job.report) return;
  try {
    const gate = await askJson(`${job.report.slice(1)}?format=json`);
    const lines = [...(gate.advice ?? []), ...(gate.to_tag ?? [])];
    $("watch-advice").replaceChildren(...lines.map((line) => h("li", {}, line)));
  } catch {
    // the link says more
  }
}

async function followLog(id, signal) {
  const place = $("watch-log");
  try {
    const answer = await ask(`v1/updates/${part(id)}/log?follow=true`, { signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 8;
      place.textContent = (place.textContent + value).slice(-LOG_CHARACTERS);
      if (atEnd) place.scrollTop = place.scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") place.textContent += `\n(${sentence(error)})`;
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
