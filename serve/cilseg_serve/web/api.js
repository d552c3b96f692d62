// The server's interface. The token is kept for this tab only, and never in the page or an address.

const KEY = "cilseg-token";
let memory = null; // where the browser has no session storage

export function token() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return memory;
  }
}

export function setToken(value) {
  memory = value || null;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in memory
  }
  document.dispatchEvent(new CustomEvent("token-changed"));
}

/** What was refused, as a sentence; `status` is the server's, 0 where it was not asked or did not answer. */
export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * Ask the server; `path` is relative to the page. Returns the Response of a success, throws Refusal else.
 * `options.token` is used for this request only, instead of the one of this tab.
 */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const secret = options.token || token();
  if (secret) {
    if (!/^[\x21-\x7e]+$/.test(secret)) {
      throw new Refusal("The token has characters that no token has. Give it again, without blanks.", 401);
    }
    headers.set("Authorization", `Bearer ${secret}`);
  }
  let body = options.body;
  if (options.json !== undefined) {
    headers.set("Content-Type", "application/json");
    body = JSON.stringify(options.json);
  }
  let answer;
  try {
    answer = await fetch(path, { method: options.method ?? "GET", headers, body, signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. See whether `cilseg serve` still runs, then try again.", 0);
  }
  if (answer.ok) return answer;
  throw new Refusal(await words(answer), answer.status);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

async function words(answer) {
  const text = await answer.text();
  let said = "";
  try {
    said = JSON.parse(text).error ?? "";
  } catch {
    // no JSON: a proxy before the server
  }
  if (!said) return `The server answered ${answer.status} ${answer.statusText || "without a reason"}.`;
  if (answer.status === 401) return `${said.split(" Send: ")[0]} Give one under “Token”.`;
  return said;
}

/** The error as a sentence for the page. */
export const sentence = (error) => (error instanceof Refusal ? error.message : `This page failed: ${error.message}`);

export const part = encodeURIComponent;
export const filePath = (file) => file.split("/").map(part).join("/");
