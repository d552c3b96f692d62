// The page: which part is shown, the token, and starting each part when it is first seen.

import { askJson, sentence, setToken, token } from "./api.js";
import { $, say } from "./dom.js";
import * as registry from "./registry.js";
import * as segmenting from "./segmenting.js";
import * as tagging from "./tagging.js";

const VIEWS = { segment: segmenting, registry, tag: tagging };
const TITLES = { segment: "Segment", registry: "Registry", tag: "Tag" };
const begun = new Set();

async function show(moveFocus) {
  const wanted = location.hash.slice(1);
  if (wanted === "content") return;
  const name = VIEWS[wanted] ? wanted : "segment";
  for (const key of Object.keys(VIEWS)) $(`view-${key}`).hidden = key !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[name]} – cilseg`;
  if (moveFocus) $("content").focus({ preventScroll: true });
  try {
    if (begun.has(name)) await VIEWS[name].seen();
    else {
      begun.add(name);
      VIEWS[name].prepare();
      await VIEWS[name].seen();
    }
    say($("page-status"), "");
  } catch (error) {
    say($("page-status"), sentence(error), "error");
  }
}

function prepareToken() {
  const [dialog, input] = [$("token-dialog"), $("token-input")];
  const label = () => ($("token-button").textContent = token() ? "Token given" : "Token");
  $("token-button").addEventListener("click", () => {
    input.value = "";
    dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "keep" && input.value.trim()) setToken(input.value.trim());
    if (dialog.returnValue === "forget") setToken("");
    dialog.returnValue = "";
    input.value = "";
  });
  document.addEventListener("token-changed", () => {
    label();
    show(false);
  });
  label();
}

async function watchHealth() {
  try {
    const { version } = await askJson("v2");
    document.querySelector("footer").append(` cilseg ${version}`);
  } catch {
    // the parts say what does not work
  }
}

prepareToken();
addEventListener("hashchange", () => show(true));
show(false);
watchHealth();
