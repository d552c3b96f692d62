// The registry: models, versions and verdicts, history, promotion and rollback.

import { askJson, part, sentence, token } from "./api.js";
import { $, announce, count, h, say, when } from "./dom.js";
import { listModels } from "./models.js";
import { reportLink } from "./report.js";

const moving = { done: null };

export function prepare() {
  $("registry-again").addEventListener("click", () => refresh("The registry was read again."));
  $("move-cancel").addEventListener("click", () => $("move-dialog").close());
  $("move-form").addEventListener("submit", submit);
}

export const seen = () => refresh();

async function refresh(words) {
  try {
    const models = await listModels();
    const histories = await Promise.all(models.map(historiesOf));
    const empty = h("p", {}, "The registry holds no model yet. Train one with cilseg train.");
    $("registry-models").replaceChildren(...models.map((model, i) => modelPart(model, histories[i])));
    if (!models.length) $("registry-models").append(empty);
    say($("registry-status"), words ?? "");
  } catch (error) {
    say($("registry-status"), sentence(error), "error");
  }
}

async function historiesOf(model) {
  const aliases = [...new Set(["production", ...model.versions.flatMap((version) => version.aliases)])];
  const read = async (alias) => {
    try {
      return [alias, await askJson(`v1/models/${part(model.name)}/history?alias=${part(alias)}`)];
    } catch (error) {
      if (error.status === 404) return [alias, []];
      throw error;
    }
  };
  return Object.fromEntries(await Promise.all(aliases.map(read)));
}

function modelPart(model, histories) {
  const id = `model-${model.name}`;
  const words = model.served
    ? `Version ${model.default} answers; the server follows ${model.follows}.`
    : "This server does not serve it.";
  const events = Object.values(histories).flat().sort((a, b) => a.sequence - b.sequence);
  return h("section", { "aria-labelledby": id, class: "model" },
    h("div", { class: "heading" },
      h("h2", { id }, model.name),
      h("button", { type: "button", "aria-label": `Roll ${model.name} back`, onclick: () => rollBack(model, histories) }, "Roll back")),
    h("p", {}, words),
    model.fault && h("p", { class: "status error" }, model.fault),
    h("ul", { class: "cards", "aria-label": `Versions of ${model.name}` },
      [...model.versions].reverse().map((version) => versionPart(model, version, histories))),
    h("details", { "aria-label": `History of ${model.name}` }, h("summary", {}, `History of ${model.name} (${count(events.length, "move")})`),
      h("div", { class: "scroll", role: "region", "aria-label": `History of ${model.name}`, tabIndex: 0 }, historyTable(events))));
}

const VERDICTS = { PROMOTE: "good", HOLD: "wait", REJECT: "bad" };

function versionPart(model, version, histories) {
  const verdict = version.gate ?? "no verdict";
  const facts = [
    version.classes !== null && count(version.classes, "class", "classes"),
    version.method,
    version.parent && `from ${/^[0-9a-z:]{40,}$/.test(version.parent) ? version.parent.slice(0, 15) : version.parent}`,
    version.created_at && when(version.created_at),
    version.loaded ? "loaded" : "not loaded",
  ].filter(Boolean);
  return h("li", { class: "card", "data-ref": version.ref },
    h("div", { class: "heading" },
      h("h3", {}, version.ref),
      h("span", { class: "badges" },
        version.aliases.map((alias) => h("span", { class: "badge alias" }, alias)),
        h("span", { class: `badge ${VERDICTS[version.gate] ?? "none"}` }, `Gate: ${verdict}`))),
    h("p", { class: "hint" }, facts.join(" · ")),
    version.damaged && h("p", { class: "status error" }, version.damaged),
    h("div", { class: "row" },
      version.gate && reportLink(`v1/models/${part(model.name)}/versions/${version.version}/report`, version.ref),
      h("button", {
        type: "button",
        "aria-label": `Promote ${version.ref}`,
        onclick: () => promote(model, version, histories),
      }, "Promote")));
}

function historyTable(events) {
  const head = ["When", "Alias", "Move", "Who", "Why"].map((text) => h("th", { scope: "col" }, text));
  const rows = [...events].reverse().map((event) =>
    h("tr", {},
      h("td", {}, when(event.when)),
      h("td", {}, event.alias),
      h("td", {}, `${event.action}: ${event.from_number ?? "–"} → ${event.to_number ?? "–"}${event.forced ? " (forced)" : ""}`),
      h("td", {}, event.who),
      h("td", {}, event.why || "–")));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

const last = (events) => events?.at(-1)?.to_number ?? null;

function promote(model, version, histories) {
  const now = last(histories.production);
  openMove({
    heading: `Promote ${version.ref}`,
    words: now === null ? "The alias points nowhere yet." : `production points at version ${now} now.`,
    go: "Promote",
    force: version.gate !== "PROMOTE" && version.parent !== null,
    send: (move, force, secret) => askJson(`v1/models/${part(model.name)}/promote`, {
      method: "POST",
      token: secret,
      json: { ...move, ...expecting(histories[move.alias]), version: version.version, force },
    }),
  });
}

function rollBack(model, histories) {
  openMove({
    heading: `Roll ${model.name} back`,
    words: "The alias goes back to what it pointed to before; no gate is asked.",
    go: "Roll back",
    force: false,
    send: (move, _, secret) => askJson(`v1/models/${part(model.name)}/rollback`, {
      method: "POST",
      token: secret,
      json: { ...move, ...expecting(histories[move.alias]) },
    }),
  });
}

/** The alias must still be where this page shows it. */
const expecting = (events) => (last(events) === null ? {} : { expect: String(last(events)) });

function openMove(move) {
  moving.done = move;
  $("move-heading").textContent = move.heading;
  $("move-words").textContent = move.words;
  $("move-go").textContent = move.go;
  $("move-alias").value = "production";
  $("move-reason").value = $("move-token").value = "";
  $("move-force").checked = false;
  $("move-force-row").hidden = !move.force;
  $("move-token-row").hidden = Boolean(token());
  say($("move-status"), "");
  $("move-dialog").showModal();
  $("move-reason").focus();
}

async function submit(event) {
  event.preventDefault();
  const move = { alias: $("move-alias").value.trim(), reason: $("move-reason").value.trim() };
  if ($("move-who").value.trim()) move.who = $("move-who").value.trim();
  if (!move.reason) {
    say($("move-status"), "Say why, in a few words; it stays in the history.", "error");
    return;
  }
  $("move-go").disabled = true;
  say($("move-status"), "Asking the server …");
  try {
    const answer = await moving.done.send(move, $("move-force").checked, $("move-token").value.trim());
    const { alias, from_number, to_number, moved } = answer.event;
    const from = from_number === null ? "" : ` from version ${from_number}`;
    const words = moved
      ? `${alias} moved${from} to version ${to_number}.`
      : `${alias} points at version ${to_number} already; nothing was changed.`;
    $("move-dialog").close();
    await refresh(answer.fault ? `${words} It is not served: ${answer.fault}` : words);
    announce(words);
  } catch (error) {
    say($("move-status"), sentence(error), "error");
    if (error.status === 401 || error.status === 403) {
      $("move-token-row").hidden = false;
      $("move-token").focus();
    }
  } finally {
    $("move-go").disabled = false;
  }
}
