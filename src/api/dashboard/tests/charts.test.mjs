import assert from 'node:assert/strict';
import { test } from 'node:test';
import { begin, decades, path, steps } from '../charts.js';

test('an axis has round numbers and reaches the highest value', () => {
  for (const highest of [0.003, 0.07, 1, 3.3, 9.99, 10, 47, 123, 5_000]) {
    const ticks = steps(highest);
    assert.ok(ticks[0] === 0 && ticks.at(-1) >= highest && ticks.at(-2) < highest, `${highest}: ${ticks}`);
    assert.ok(ticks.length >= 3 && ticks.length <= 6, `${highest}: ${ticks}`);
  }
  assert.deepEqual(steps(0), [0, 1]);
  assert.deepEqual(steps(47), [0, 20, 40, 60]);
});

test('a logarithmic axis has the powers of ten around the values', () => {
  assert.deepEqual(decades(2, 340), [1, 10, 100, 1000]);
  assert.deepEqual(decades(0.0001, 0.05), [0.01, 0.1]);
  assert.deepEqual(decades(5, 5), [1, 10]);
});

test('a line is interrupted where nothing is known, and a value alone is seen', () => {
  const drawn = path([1, 2, null, 3, null, 4, 5], (index) => index, (value) => value * 10);
  assert.equal(drawn, 'M0.0 10.0L1.0 20.0M3.0 30.0h0.01M5.0 40.0L6.0 50.0');
  assert.equal(path([null, null], (index) => index, (value) => value), '');
});

test('a young cluster is not shown as ten empty minutes', () => {
  const of = (known, length) => Array.from({ length }, (_, index) => (index < length - known ? null : 1));
  assert.equal(begin([of(3, 120), of(20, 120), of(0, 120)], 12), 100);
  assert.equal(begin([of(3, 120)], 12), 108);
  assert.equal(begin([of(120, 120)], 12), 0);
  assert.equal(begin([of(0, 120)], 12), 108);
  assert.equal(begin([of(0, 5)], 12), 0);
});
