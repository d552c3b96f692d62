// Making elements, saying things to screen readers, and words for numbers and times.

/** Make an element. Properties are set as such; "class", "for", "role", "aria-*" and "data-*" as attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(aria-|data-)|^(class|for|role)$/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** A square in the colour of a class; decoration only, so hidden from screen readers. */
export function swatch(color) {
  const element = h("span", { class: "swatch", "aria-hidden": "true" });
  element.style.backgroundColor = color;
  return element;
}

/** Say something politely: shown in no other place, read by screen readers. */
export function announce(text) {
  const place = $("announcer");
  place.textContent = "";
  requestAnimationFrame(() => (place.textContent = text));
}

/** Show a sentence in a status line; errors are alerts. An empty text clears it. */
export function say(place, text, kind = "info") {
  place.className = `status ${kind}`;
  place.setAttribute("role", kind === "error" ? "alert" : "status");
  place.textContent = text;
}

export const percent = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
export const milliseconds = (seconds) => `${Math.round(1000 * seconds)} ms`;
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export function when(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text) : date.toLocaleString();
}

/** Whether keys are text at this moment, and not commands. */
export function isTyping(target) {
  if (document.querySelector("dialog[open]")) return true;
  return target.matches?.("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox], [type=range])");
}
