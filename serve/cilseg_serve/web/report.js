// Links to gate reports. A link cannot carry a token, so with one the report is fetched and shown in a frame.

import { ask, sentence, token } from "./api.js";
import { $, h, say } from "./dom.js";

let prepared = false;

export function reportLink(path, ref) {
  const link = h("a", { href: path, target: "_blank", rel: "noopener", "aria-label": `Gate report of ${ref}` }, "Gate report");
  link.addEventListener("click", (event) => {
    if (!token()) return;
    event.preventDefault();
    showReport(path, ref);
  });
  return link;
}

async function showReport(path, ref) {
  if (!prepared) {
    prepared = true;
    $("report-close").addEventListener("click", () => $("report-dialog").close());
  }
  try {
    $("report-frame").srcdoc = await (await ask(path)).text();
    $("report-heading").textContent = `Gate report of ${ref}`;
    $("report-dialog").showModal();
  } catch (error) {
    say($("page-status"), sentence(error), "error");
  }
}
