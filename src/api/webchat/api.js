// Talks to the gateway that served this page, and to nothing else.
//
// Addresses are fixed paths on the page's own origin: neither an endpoint nor a token is ever read from the URL
// (CVE-2026-25253). The token is typed by the user and kept in sessionStorage, so it ends with the tab.

const TOKEN = 'openclaw.token';

/** What went wrong with a request; `code` is the gateway's own, or "offline" when no answer came. */
export class ApiError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{status?: number, retryable?: boolean, retryAfterMs?: number}} [more]
   */
  constructor(code, message, more = {}) {
    super(message);
    this.code = code;
    this.status = more.status ?? 0;
    this.retryable = more.retryable ?? false;
    this.retryAfterMs = more.retryAfterMs ?? 0;
  }
}

/** sessionStorage, where a browser that forbids it costs memory over reloads and nothing else. */
export const memory = {
  /** @param {string} name */
  get(name) {
    try {
      return sessionStorage.getItem(name);
    } catch {
      return null;
    }
  },
  /** @param {string} name @param {string | null} value null or empty forgets it */
  set(name, value) {
    try {
      if (value) sessionStorage.setItem(name, value);
      else sessionStorage.removeItem(name);
    } catch {
      // Full or forbidden: the page works without.
    }
  },
};

/** @type {() => Promise<string | null>} */
let askToken = async () => null;
/** @type {Promise<string | null> | null} */
let asking = null;

/** @param {() => Promise<string | null>} ask shows the prompt; null when the user would rather not */
export function onTokenNeeded(ask) {
  askToken = ask;
}

/**
 * Sends a request and gives the answer once it is a 2xx. A 401 asks the user for the token and repeats the request:
 * a request that was not let in had no effect.
 * @param {string} path below /api/v1/
 * @param {{method?: string, body?: unknown, headers?: Record<string, string>, signal?: AbortSignal, quiet?: boolean}} [options]
 *   quiet: a 401 fails and asks nobody
 * @returns {Promise<Response>}
 */
export async function request(path, options = {}) {
  for (;;) {
    const token = memory.get(TOKEN);
    /** @type {Record<string, string>} */
    const headers = { ...options.headers };
    if (token) headers.authorization = `Bearer ${token}`;
    if (options.body !== undefined) headers['content-type'] = 'application/json';
    let response;
    try {
      response = await fetch(`/api/v1/${path}`, {
        method: options.method ?? 'GET',
        headers,
        body: options.body === undefined ? undefined : JSON.stringify(options.body),
        signal: options.signal,
        cache: 'no-store',
        credentials: 'omit',
        redirect: 'error',
        referrerPolicy: 'no-referrer',
      });
    } catch (error) {
      throw options.signal?.aborted ? error : new ApiError('offline', String(error), { retryable: true });
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (error.status !== 401 || options.quiet) throw error;
    // Another request may have asked in the meantime: then its token is tried first.
    if (memory.get(TOKEN) === token) {
      asking ??= askToken().finally(() => (asking = null));
      const typed = await asking;
      if (!typed) throw error;
      memory.set(TOKEN, typed);
    }
  }
}

/** @param {string} path @param {Parameters<typeof request>[1]} [options] @returns {Promise<any>} */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const seconds = Number(response.headers.get('retry-after'));
  return new ApiError(body?.error?.code ?? `http_${response.status}`, body?.error?.message ?? response.statusText, {
    status: response.status,
    // A balancer that found no instance answers in its own words: that passes too.
    retryable: body?.error?.retryable ?? response.status >= 502,
    retryAfterMs: seconds > 0 ? Math.min(seconds, 30) * 1000 : 0,
  });
}

/** A random version 4 UUID, also where the page is not a secure context and `crypto.randomUUID` is missing. */
export function uuid() {
  if (typeof crypto.randomUUID === 'function') return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

const TEXTS = /** @type {Record<string, string>} */ ({
  offline: 'The gateway cannot be reached. Your message is kept here.',
  unauthorized: 'The gateway needs its access token.',
  forbidden_origin: 'The gateway does not accept requests from this address. Open it under the address it was configured with.',
  not_found: 'This conversation or answer no longer exists.',
  busy: 'The gateway has too much to do right now. Try again in a moment.',
  no_quorum: 'Too few instances are running to accept messages. Try again once more of them are back.',
  draining: 'The instance is being shut down. Try again in a moment.',
  effect_unknown: 'No answer came in time. Trying again is safe: nothing is sent twice.',
  timeout: 'It took too long. Try again.',
  too_large: 'The message is too long.',
  model_failed: 'The model could not answer.',
  turn_abandoned: 'The answer was interrupted too often and was given up.',
  cancelled: 'Stopped.',
  internal: 'Something went wrong in the gateway.',
});

/** What a person reads of an error. @param {unknown} error */
export function explain(error) {
  if (!(error instanceof ApiError)) return `Something went wrong in this page: ${error}`;
  const known = TEXTS[error.code];
  if (!known) return error.message || `The gateway answered with ${error.code}.`;
  const detailed = ['model_failed', 'internal', 'too_large'].includes(error.code) && error.message;
  return detailed ? `${known} (${error.message})` : known;
}
