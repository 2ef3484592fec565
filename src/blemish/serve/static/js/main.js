// What all pages have: keys, the help sheet, light and dark, messages, dialogs.

export const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

/** Shows a message for a while. */
export function tell(text, wrong = false) {
  const place = document.querySelector("#toasts");
  if (!place) return;
  const toast = document.createElement("div");
  toast.className = wrong ? "toast wrong" : "toast";
  toast.textContent = text;
  place.append(toast);
  setTimeout(() => toast.remove(), wrong ? 9000 : 4000);
}

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

document.addEventListener("htmx:responseError", async (event) => {
  const { xhr } = event.detail;
  let text = `the service answered ${xhr.status}`;
  try {
    text = JSON.parse(xhr.responseText).error.message;
  } catch {
    // not JSON: the status says it
  }
  tell(text, true);
});
document.addEventListener("htmx:sendError", () => tell("the service cannot be reached", true));
