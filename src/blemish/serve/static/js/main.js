// What all pages have: keys, the help sheet, light and dark, messages, dialogs.

const meta = document.querySelector('meta[name="csrf"]');

/** What has to come with every change. */
export const csrf = () => meta?.content ?? "";

/** Another one, where the service has begun anew; false where somebody has to log in. */
export async function renew() {
  const answer = await fetch("/session", { headers: { Accept: "application/json" } });
  if (answer.status === 401 || answer.status === 403) return false;
  if (!answer.ok) throw new Error(`the session: ${answer.status}`);
  meta.content = (await answer.json()).csrf;
  document.body.setAttribute("hx-headers", JSON.stringify({ "X-CSRF-Token": meta.content }));
  return true;
}

/** Shows something until it is closed, with buttons: their names and what they do. */
export function hold(text, wrong = false, actions = {}) {
  // What is outside of an open dialog can neither be read well nor clicked.
  const place = document.querySelector("dialog[open]") ?? document.querySelector("#toasts");
  const toast = document.createElement("div");
  const said = document.createElement("span");
  toast.className = wrong ? "toast wrong" : "toast";
  if (wrong) toast.role = "alert";
  said.textContent = text;
  toast.append(said);
  for (const [name, work] of Object.entries(actions)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", work);
    toast.append(button);
  }
  place?.append(toast);
  return { close: () => toast.remove() };
}

/** Shows a message for a while. */
export function tell(text, wrong = false) {
  const { close } = hold(text, wrong);
  setTimeout(close, wrong ? 9000 : 4000);
}

/** What is remembered in this browser; nothing where that is forbidden. */
export const remembered = {
  get(name) {
    try {
      return localStorage.getItem(`blemish-${name}`);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`blemish-${name}`, value);
    } catch {
      // then it is not
    }
  },
};

/** The message of an answer that is an error. */
export async function problem(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the service answered ${answer.status}`;
  }
}

/** Whether a key is meant for what has the focus. */
export function isTyping(event) {
  const { target } = event;
  if (event.isComposing || event.altKey) return true;
  if (document.querySelector("dialog[open]")) return true;
  return target.matches?.('input:not([type="range"], [type="checkbox"], [type="file"]), select, textarea') ?? false;
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `blemish_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}

const help = document.querySelector("#help");
document.querySelector("#theme")?.addEventListener("click", theme);
document.querySelector("#help-open")?.addEventListener("click", () => help.showModal());

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || event.ctrlKey || event.metaKey) return;
  if (event.key === "?") {
    help?.showModal();
  } else if (event.key === "t") {
    theme();
  } else if (event.shiftKey) {
    document.querySelector(`.top nav a[data-key="${CSS.escape(event.key.toLowerCase())}"]`)?.click();
  }
});

// Such forms are htmx's alone: sent by the browser itself, what they say would be lost.
document.addEventListener("submit", (event) => {
  if (event.target.matches?.("[hx-post]")) event.preventDefault();
});

document.addEventListener("change", (event) => {
  if (event.target.matches?.("[data-submits]")) event.target.form.requestSubmit();
});

document.addEventListener("click", (event) => {
  const opens = event.target.closest?.("[data-opens]");
  if (opens) document.getElementById(opens.dataset.opens)?.showModal();
  if (event.target.closest?.("[data-closes]")) event.target.closest("dialog")?.close();
  if (event.target.matches?.("dialog")) event.target.close(); // its backdrop
});

// What is open is not taken from under somebody's hands.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "refine" && event.target.querySelector("dialog[open]")) event.preventDefault();
});

/** What went wrong with a request of htmx: status, kind, text, and how long to wait. */
export function failure(xhr) {
  const found = { status: xhr?.status ?? 0, kind: "", text: "the service cannot be reached", after: 0 };
  if (!found.status) return found;
  found.text = `the service answered ${found.status}`;
  found.after = Number(xhr.getResponseHeader("Retry-After")) || 0;
  try {
    const { kind, message } = JSON.parse(xhr.responseText).error;
    Object.assign(found, { kind, text: message });
  } catch {
    // not JSON: the status says it
  }
  return found;
}

const renewed = new WeakMap(); // when it was tried for an element

/** Ask again with a token that is good, once; elements that look after themselves say so. */
async function again(event) {
  const { elt, requestConfig, xhr } = event.detail;
  if (elt.hasAttribute?.("data-own-failures")) return;
  const found = failure(xhr);
  if (found.kind === "Forged" && performance.now() - (renewed.get(elt) ?? -1e6) > 10000) {
    renewed.set(elt, performance.now());
    if (await renew().catch(() => false)) {
      const submitter = requestConfig?.triggeringEvent?.submitter;
      if (elt.matches("form")) elt.requestSubmit(submitter?.form === elt ? submitter : undefined);
      else elt.click();
      return;
    }
  }
  if (found.status === 401) found.text = "you are logged out; log in again in another tab, then try again";
  tell(found.text, true);
}
document.addEventListener("htmx:responseError", again);
document.addEventListener("htmx:sendError", again);
