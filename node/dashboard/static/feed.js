// The live feed: `docs/dashboard.md` describes the documents, `node/dashboard/feed.py` is what they are made from.
// EventSource cannot send the admin key, so the stream is read by hand.

const KEY = "spillway-admin-key";
const SILENT_MS = 5000; // a tick comes every second; the node is gone, or the way to it
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;

export const adminKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
  forget: () => sessionStorage.removeItem(KEY),
};

// A link may bring the key behind its #, which a browser sends to nobody. It does not stay in the address.
const brought = /^#key=([\w-]+)$/.exec(location.hash);
if (brought) {
  adminKey.set(brought[1]);
  history.replaceState(null, "", location.pathname);
}

export const authorization = () => (adminKey.get() ? { authorization: `Bearer ${adminKey.get()}` } : {});

/**
 * Follow the feed for ever. `on` has `hello(document)`, `tick(document)`, `locked(wrongKey)` and `lost(message, inMs)`.
 * Gives `retry()`, which tries at once: after the key was entered, or when the reader does not want to wait.
 */
export function follow(on) {
  let pauseMs = FIRST_PAUSE_MS;
  let attempt = new AbortController();
  let timer = 0;

  async function connect() {
    clearTimeout(timer);
    attempt.abort();
    const mine = (attempt = new AbortController());
    let why = "The node does not answer.";
    try {
      const answer = await fetch("/dashboard/feed", { headers: authorization(), signal: mine.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        on.locked(adminKey.get() !== null, answer.status === 403 ? await messageOf(answer) : null);
        return;
      }
      if (answer.ok) {
        why = await read(answer.body, mine);
        if (why === null) why = "The connection to the node was lost.";
      } else why = await messageOf(answer);
    } catch (error) {
      if (mine !== attempt) return; // another attempt has taken over
      if (error.name === "AbortError") why = "The node has been silent for some seconds.";
      else if (!(error instanceof TypeError)) throw error; // fetch's word for "no connection"
    }
    if (mine !== attempt) return;
    on.lost(why, pauseMs);
    timer = setTimeout(connect, pauseMs);
    pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
  }

  async function read(body, mine) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    let why = null;
    let watchdog = setTimeout(() => mine.abort(), SILENT_MS);
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return why;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => mine.abort(), SILENT_MS);
        held += value;
        const events = held.split("\n\n");
        held = events.pop();
        for (const event of events) {
          const [name, data] = parse(event);
          if (name === "hello") pauseMs = FIRST_PAUSE_MS;
          if (name === "bye") why = "The node is shutting down.";
          else tell(() => on[name]?.(data));
        }
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  connect();
  return () => {
    pauseMs = FIRST_PAUSE_MS;
    connect();
  };
}

/** A mistake in what draws the page is reported as one, and not taken for a lost connection. */
function tell(listener) {
  try {
    listener();
  } catch (error) {
    reportError(error);
  }
}

function parse(event) {
  const [first, second] = event.split("\n");
  return [first.slice("event: ".length), JSON.parse(second.slice("data: ".length))];
}

export async function messageOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The node answered with status ${answer.status}.`;
  }
}
