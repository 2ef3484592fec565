// A label on its way to the service: sent once, tried again where that helps, never lost.

import { failure, hold, renew } from "./main.js";

const LONGEST = 30; // seconds between two attempts
const WORTH = [0, 408, 425, 429, 500, 502, 503, 504]; // out of reach, or busy: it may go well later

/** What became of the labels of a form. Args: form: finds it; done: called with the verdict when
 * one is kept. */
export class Sending {
  constructor(form, done) {
    this.form = form;
    this.done = done;
    this.waits = 0; // the timer of the next attempt
    this.attempts = 0;
    this.renewed = false;
    this.notice = null;
    document.addEventListener("htmx:afterRequest", (event) => {
      // By its address, as the form itself may be gone by now.
      if (event.detail.requestConfig.path.startsWith("/review/label")) this.answered(event.detail);
    });
  }

  /** A verdict is sent; what was to be tried again is not any more. */
  begin(verdict) {
    if (verdict !== this.verdict) this.attempts = 0;
    this.verdict = verdict;
    clearTimeout(this.waits);
  }

  end() {
    this.notice?.close();
    this.notice = null;
    this.attempts = 0;
    this.renewed = false;
    clearTimeout(this.waits);
  }

  async answered({ successful, xhr }) {
    if (successful) {
      this.end();
      this.done(this.verdict);
      return;
    }
    const found = failure(xhr);
    if (found.kind === "Forged" && !this.renewed) {
      this.renewed = true;
      const known = await renew().catch(() => null);
      if (known) this.send();
      else if (known === null) this.later(found);
      else this.loggedOut();
    } else if (found.status === 401) this.loggedOut();
    else if (WORTH.includes(found.status)) this.later(found);
    else this.say(`Not kept: ${found.text}. What you drew is still here.`, {});
  }

  later(found) {
    this.attempts += 1;
    const seconds = Math.min(LONGEST, Math.max(found.after, 2 ** this.attempts));
    this.say(`Not kept yet: ${found.text}. Trying again in ${seconds} s; what you drew stays here.`, {
      "Try now": () => this.send(),
      "Do not send it": () => this.end(),
    });
    this.waits = setTimeout(() => this.send(), 1000 * seconds);
  }

  loggedOut() {
    const { prediction, then } = this.form().elements;
    const path = then.value === "stay" ? `/pictures/${prediction.value}` : `/review?id=${prediction.value}`;
    this.say("Not kept: you are logged out. What you drew is kept in this tab: log in, then send it again.", {
      "Log in": () => location.assign(`/login?next=${encodeURIComponent(path)}`),
    });
  }

  say(text, actions) {
    this.notice?.close();
    this.notice = hold(text, true, { ...actions, Close: () => this.end() });
  }

  send() {
    clearTimeout(this.waits);
    this.form()?.querySelector(`[name=verdict][value="${this.verdict}"]`)?.click();
  }
}
