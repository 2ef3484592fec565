// What somebody has drawn and said of a picture, kept in this tab until the service has it: over a
// failed request, a page that is loaded anew, and a login.

const name = (picture) => `blemish-draft ${picture}`;

export function keep(picture, draft) {
  try {
    if (draft) sessionStorage.setItem(name(picture), JSON.stringify(draft));
    else sessionStorage.removeItem(name(picture));
  } catch {
    // full, or forbidden: it is on the page alone
  }
}

/** What was kept of a picture; null where nothing was. */
export function kept(picture) {
  try {
    return JSON.parse(sessionStorage.getItem(name(picture)));
  } catch {
    return null;
  }
}
