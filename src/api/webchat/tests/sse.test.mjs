import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_EVENT, SseParser } from '../sse.js';

const bytes = (text) => new TextEncoder().encode(text);
const parse = (...parts) => {
  const parser = new SseParser();
  return parts.flatMap((part) => parser.push(typeof part === 'string' ? bytes(part) : part));
};

test('an event has a name, data and an id', () => {
  assert.deepEqual(parse('event: delta\nid: t.1-2\ndata: {"text":"a"}\n\n'), [{ event: 'delta', data: '{"text":"a"}', id: 't.1-2' }]);
});

test('every way to cut a stream into parts gives the same events', () => {
  const stream = bytes('event: delta\r\nid: t.1-1\r\ndata: {"text":"Grüße 🦀"}\r\n\r\n: keep-alive\n\nevent: done\rdata: {}\r\rdata: x\n\n');
  const whole = parse(stream);
  assert.equal(whole.length, 3);
  for (let size = 1; size < stream.length; size += 1) {
    const parts = [];
    for (let at = 0; at < stream.length; at += size) parts.push(stream.slice(at, at + size));
    assert.deepEqual(parse(...parts), whole, `parts of ${size} bytes`);
  }
});

test('comments and unknown fields give no event, and an event without data is none', () => {
  assert.deepEqual(parse(': hello\n\nretry: 10\nfoo: bar\n\nevent: start\n\n'), []);
});

test('an id stays until another one comes, and data may have several lines', () => {
  assert.deepEqual(parse('id: 7\ndata: a\ndata:  b\ndata\n\ndata:c\n\n'), [
    { event: 'message', data: 'a\n b\n', id: '7' },
    { event: 'message', data: 'c', id: '7' },
  ]);
});

test('an event that the end of the stream cuts short is not given', () => {
  assert.deepEqual(parse('event: done\ndata: {"text":"all"}\n'), []);
});

test('an event without end is refused, in one line or in many', () => {
  assert.throws(() => parse('data: ' + 'x'.repeat(MAX_EVENT)), RangeError);
  assert.throws(() => parse(`data: ${'x'.repeat(1000)}\n`.repeat(MAX_EVENT / 1000 + 1)), RangeError);
});
