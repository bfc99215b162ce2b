// Requests to the service, with the user's key. Problems (RFC 9457) become errors.

const KEY = "ddpm-key";

/** A request that was refused. The message says why, and what to do about it. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Use this key for as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/**
 * Send a request and return the answer. Throws a Problem where it is refused.
 *
 * Our own paths have no slash in front: the page may lie under any path of a proxy.
 */
export async function ask(path, { method = "GET", body } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = {
    ...(key && { Authorization: `Bearer ${key}` }),
    ...(body && { "Content-Type": "application/json" }),
  };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) }).catch(() => {
    throw new Problem(0, "The service does not answer.");
  });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => null); // a proxy's answer is no JSON
    throw new Problem(answer.status, problem?.detail ?? `The service answers ${answer.status}.`);
  }
  return answer;
}

/** Fetch JSON. Throws a Problem, also where the answer breaks off or is somebody else's. */
export async function json(path) {
  const answer = await ask(path);
  return answer.json().catch(() => {
    throw new Problem(answer.status, "What answers is not the service, or breaks off.");
  });
}

/** Save a file under this name on the user's disk. A link could not send the key. */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
