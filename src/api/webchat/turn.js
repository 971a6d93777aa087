// One answer, from the message that was sent to the committed reply, over as many connections as it takes.
//
// Before `start` the gateway may or may not have the message: a repeated POST with the same idempotency key is safe.
// From `start` on the message is accepted, and any instance can continue the stream after the last event id.

import { ApiError, json, request } from './api.js';
import { SseParser } from './sse.js';

/** The server sends a comment every 15 s; a connection that is silent for longer than this is dead. */
const SILENCE_MS = 35_000;
const GIVE_UP_MS = 120_000;
/** Errors of one connection or instance, which say nothing about the turn itself. */
const PASSING = ['busy', 'no_quorum', 'draining', 'effect_unknown', 'timeout'];

/**
 * What is known of an answer. Pure: events in, state out.
 */
export class Answer {
  /** @type {string | null} */
  turnId = null;
  /** The instance that accepted the message, or that runs the turn since. */
  instanceId = '';
  text = '';
  /** Tool calls that have begun, by name; true once finished. @type {Map<string, boolean>} */
  tools = new Map();
  restarts = 0;
  lastEventId = '';
  /** @type {{entryId: string, usage: any, model: string} | null} */
  done = null;
  /** @type {ApiError | null} */
  failure = null;
  #attempt = 0;
  #number = -1;

  get ended() {
    return this.done !== null || this.failure !== null;
  }

  /** @param {import('./sse.js').SseEvent} event */
  apply({ event, data, id }) {
    if (this.ended) return;
    const body = JSON.parse(data);
    // `<turn>.<attempt>-<n>`
    const place = /\.(\d+)-(\d+)$/.exec(id);
    const attempt = place ? Number(place[1]) : this.#attempt;
    const number = place ? Number(place[2]) : this.#number + 1;
    if (event === 'start') {
      this.turnId = body.turnId;
      this.instanceId = body.instanceId;
    } else if (event === 'restart') {
      if (this.#attempt !== 0 && body.attempt <= this.#attempt) return;
      this.restarts += 1;
      this.#begin(body.attempt);
    } else if (event === 'delta' || event === 'tool') {
      // A connection may repeat what an earlier one delivered; an older attempt's text is void.
      if (attempt < this.#attempt || (attempt === this.#attempt && number <= this.#number)) return;
      if (attempt > this.#attempt) this.#begin(attempt);
      this.#number = number;
      if (event === 'delta') this.text += body.text;
      else this.tools.set(body.name, !['start', 'started', 'begin', 'running'].includes(body.phase));
    } else if (event === 'done') {
      this.text = body.text;
      this.done = body;
    } else if (event === 'error') {
      this.failure = new ApiError(body.code, body.message);
    } else {
      return; // From a newer release.
    }
    if (id) this.lastEventId = id;
  }

  /** @param {number} attempt */
  #begin(attempt) {
    this.#attempt = attempt;
    this.#number = -1;
    this.text = '';
    this.tools.clear();
  }
}

/** @typedef {{state: 'waiting' | 'open' | 'lost', servedBy?: string, error?: ApiError}} Link the connection an answer comes over */

/**
 * Follows an answer to its end.
 * @param {{post: {body: object, idempotencyKey: string}} | {turnId: string}} source what to send, or the turn to read on
 * @param {object} options
 * @param {AbortSignal} options.signal stops reading; the turn itself goes on
 * @param {(answer: Answer, link: Link) => void} options.onChange
 * @returns {Promise<Answer>}
 * @throws {ApiError} when the message was refused, or no instance could be reached for two minutes
 */
export async function follow(source, { signal, onChange }) {
  const answer = new Answer();
  if ('turnId' in source) answer.turnId = source.turnId;
  let failures = 0;
  let progress = Date.now();
  onChange(answer, { state: 'waiting' });
  for (;;) {
    const connection = new AbortController();
    const stop = () => connection.abort();
    signal.addEventListener('abort', stop);
    let timer = setTimeout(stop, SILENCE_MS);
    /** @type {ApiError} */
    let broken = new ApiError('offline', 'the stream was closed', { retryable: true });
    try {
      const response = await open(source, answer, connection.signal);
      const servedBy = response.headers.get('x-openclaw-instance') ?? '';
      onChange(answer, { state: 'open', servedBy });
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      const parser = new SseParser();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        clearTimeout(timer);
        timer = setTimeout(stop, SILENCE_MS);
        progress = Date.now();
        failures = 0;
        for (const event of parser.push(part.value)) answer.apply(event);
        await settle(answer);
        onChange(answer, { state: 'open', servedBy });
        if (answer.ended) return answer;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ApiError) broken = error;
      else if (error instanceof RangeError || error instanceof SyntaxError) throw new ApiError('internal', error.message);
      if (!broken.retryable) throw broken;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
      connection.abort();
    }
    failures += 1;
    if (Date.now() - progress > GIVE_UP_MS) throw broken;
    onChange(answer, { state: 'lost', error: broken });
    await pause(Math.max(broken.retryAfterMs, backoff(failures)), signal);
  }
}

/** @param {Parameters<typeof follow>[0]} source @param {Answer} answer @param {AbortSignal} signal */
function open(source, answer, signal) {
  if (!answer.turnId && 'post' in source) {
    const { body, idempotencyKey } = source.post;
    return request('chat/stream', { method: 'POST', body, headers: { 'idempotency-key': idempotencyKey, accept: 'text/event-stream' }, signal });
  }
  /** @type {Record<string, string>} */
  const headers = { accept: 'text/event-stream' };
  if (answer.lastEventId) headers['last-event-id'] = answer.lastEventId;
  return request(`chat/stream?turnId=${encodeURIComponent(answer.turnId ?? '')}`, { headers, signal });
}

/**
 * Takes an error back that only this connection had: the turn's own state decides.
 * @param {Answer} answer
 */
async function settle(answer) {
  if (!answer.failure || !answer.turnId || !PASSING.includes(answer.failure.code)) return;
  const { code, message } = answer.failure;
  const turn = await json(`turns/${answer.turnId}`).catch(() => null);
  if (turn && !['queued', 'running'].includes(turn.state)) return;
  answer.failure = null;
  throw new ApiError(code, message, { retryable: true });
}

/**
 * How long to wait before the next attempt: doubling from 100 ms to 4 s, of which up to half is left to chance, so that
 * the readers of a dead instance do not all come back at once.
 * @param {number} failures in a row, from 1
 */
export function backoff(failures) {
  const full = Math.min(4000, 100 * 2 ** Math.min(failures, 10));
  return full / 2 + (Math.random() * full) / 2;
}

/**
 * Waits, or less when the browser finds the network again.
 * @param {number} ms
 * @param {AbortSignal} signal
 */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const wake = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.('online', wake);
      signal.removeEventListener('abort', wake);
      if (signal.aborted) reject(signal.reason);
      else resolve(undefined);
    };
    const timer = setTimeout(wake, ms);
    globalThis.addEventListener?.('online', wake);
    signal.addEventListener('abort', wake);
  });
}
