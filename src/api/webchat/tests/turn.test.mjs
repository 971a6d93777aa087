import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Answer, backoff, follow } from '../turn.js';

const event = (name, body, id = '') => ({ event: name, data: JSON.stringify(body), id });
const delta = (text, id) => event('delta', { text }, id);
const answerTo = (...events) => {
  const answer = new Answer();
  events.forEach((each) => answer.apply(each));
  return answer;
};

test('text that a new connection repeats is taken once', () => {
  assert.equal(answerTo(delta('a', 't.1-1'), delta('b', 't.1-2'), delta('a', 't.1-1'), delta('b', 't.1-2'), delta('c', 't.1-3')).text, 'abc');
});

test('another attempt voids the text, and stragglers of the old one change nothing', () => {
  const answer = answerTo(delta('old', 't.1-1'), event('restart', { attempt: 2 }, 't.2-0'), delta('new', 't.2-1'), delta('er', 't.1-2'), event('restart', { attempt: 2 }, 't.2-0'));
  assert.equal(answer.text, 'new');
  assert.equal(answer.restarts, 1);
  assert.equal(answer.lastEventId, 't.2-1');
});

test('the committed text replaces what was streamed, and nothing follows it', () => {
  const answer = answerTo(delta('par', 't.1-1'), event('done', { entryId: 'e', text: 'partial', usage: {}, model: 'm' }), delta('x', 't.1-2'));
  assert.equal(answer.text, 'partial');
  assert.ok(answer.ended);
});

test('waits grow, up to four seconds, and differ', () => {
  assert.ok(backoff(1) <= 200 && backoff(1) >= 100);
  assert.ok(backoff(1000) <= 4000 && backoff(1000) >= 2000);
  assert.notEqual(backoff(9), backoff(9));
});

/** A gateway of prepared answers, one per request; an Error stands for a connection that fails. */
function gateway(...answers) {
  const asked = [];
  globalThis.fetch = async (path, { method, headers, body }) => {
    asked.push({ method, path, key: headers['idempotency-key'], last: headers['last-event-id'], body });
    const next = answers.shift();
    if (next instanceof Error || next === undefined) throw next ?? new Error('nothing more was expected');
    return typeof next === 'string' ? new Response(next, { headers: { 'x-openclaw-instance': 'node-2' } }) : next;
  };
  return asked;
}
const sse = (...events) => events.map(({ event: name, data, id }) => `event: ${name}\n${id && `id: ${id}\n`}data: ${data}\n\n`).join('');
const start = event('start', { turnId: 't', sessionKey: 's', instanceId: 'node-1' }, 't.1-0');
const done = event('done', { entryId: 'e', text: 'ab', usage: {}, model: 'm' }, 't.1-9');
const post = { post: { body: { message: 'hi' }, idempotencyKey: 'k' } };
const options = () => ({ signal: new AbortController().signal, onChange: () => {} });
const refusal = (status, code, retryable) => Response.json({ error: { code, message: code, retryable, requestId: 'r' } }, { status });

test('a message whose acceptance was not seen is sent again under the same key', async () => {
  const asked = gateway(new TypeError('reset'), refusal(503, 'no_quorum', true), sse(start, done));
  assert.equal((await follow(post, options())).text, 'ab');
  assert.deepEqual(asked.map(({ method, key }) => [method, key]), [['POST', 'k'], ['POST', 'k'], ['POST', 'k']]);
});

test('a stream that breaks goes on after its last event', async () => {
  const asked = gateway(sse(start, delta('a', 't.1-1')), new TypeError('reset'), sse(delta('b', 't.1-2'), done));
  const answer = await follow(post, options());
  assert.equal(answer.text, 'ab');
  assert.deepEqual(asked.slice(1).map(({ method, path, last }) => [method, path, last]), [
    ['GET', '/api/v1/chat/stream?turnId=t', 't.1-1'],
    ['GET', '/api/v1/chat/stream?turnId=t', 't.1-1'],
  ]);
});

test('a refusal for good is not repeated', async () => {
  const asked = gateway(refusal(413, 'too_large', false));
  await assert.rejects(follow(post, options()), { code: 'too_large' });
  assert.equal(asked.length, 1);
});

test('an error of the instance is not the end of a turn that still runs', async () => {
  const busy = event('error', { code: 'no_quorum', message: 'no quorum' });
  const asked = gateway(sse(start, busy), Response.json({ state: 'running' }), sse(done));
  assert.ok((await follow(post, options())).done);
  assert.equal(asked[1].path, '/api/v1/turns/t');
});

test('a failed turn ends with its error', async () => {
  gateway(sse(start, event('error', { code: 'model_failed', message: 'openai: 500' })));
  assert.equal((await follow(post, options())).failure.code, 'model_failed');
});

test('leaving stops the reading', async () => {
  gateway(new TypeError('reset'));
  const leave = new AbortController();
  const reading = follow(post, { signal: leave.signal, onChange: (_, { state }) => state === 'lost' && leave.abort() });
  await assert.rejects(reading, { name: 'AbortError' });
});
