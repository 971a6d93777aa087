import assert from 'node:assert/strict';
import { test } from 'node:test';
import { counted, describe, figure, identity, listed, span, timeline, verdict, weight } from '../words.js';

const event = (kind, more = {}) => ({ kind, atMs: 600_000, seenBy: 'node-1', number: 5, ...more });
const instance = (instanceId, more = {}) => ({ instanceId, role: 'follower', live: true, draining: false, answered: true, ...more });
const overview = (more = {}) => ({
  instanceId: 'node-1',
  atMs: 700_000,
  sinceMs: 100_000,
  leader: 'node-1',
  term: 5,
  instances: [instance('node-1', { role: 'leader' }), instance('node-2'), instance('node-3')],
  channels: [{ account: 'webchat', everywhere: true }],
  events: [],
  ...more,
});

test('spans, figures and lists read as people say them', () => {
  assert.deepEqual([0.4, 84, 999, 3_210, 45_000, 600_000, 90_000_000].map(span), ['0 ms', '84 ms', '999 ms', '3.2 s', '45 s', '10 min', '25 h']);
  assert.deepEqual([0, 0.004, 0.25, 12.34, 1234.5].map(figure), ['0', '<0.01', '0.25', '12.3', '1,235']);
  assert.deepEqual([[], ['a'], ['a', 'b'], ['a', 'b', 'c']].map(listed), ['', 'a', 'a and b', 'a, b and c']);
  assert.deepEqual([counted(1, 'change'), counted(2, 'change')], ['1 change', '2 changes']);
});

test('every kind of event is a sentence', () => {
  const moved = { account: 'telegram:default', from: 'node-1', to: 'node-2' };
  for (const [happened, text, how] of [
    [event('leader_changed', { from: 'node-1', to: 'node-2', gapMs: 84 }), 'node-2 leads, in term 5, after node-1. There was no leader for 84 ms.', 'warn'],
    [event('leader_changed', { to: 'node-2' }), 'node-2 leads, in term 5.', 'plain'],
    [event('leader_reached', { instance: 'node-3', to: 'node-2', gapMs: 4_200 }), 'node-3 had no contact with its leader node-2 for 4.2 s.', 'warn'],
    [event('leader_reached', { instance: 'node-2', to: 'node-2', gapMs: 516 }), 'node-2 leads, but heard of no quorum for 516 ms.', 'warn'],
    [event('instance_came', { instance: 'node-1', version: '1.2' }), 'node-1 is there, version 1.2.', 'plain'],
    [event('instance_went', { instance: 'node-1' }), 'node-1 is gone: it stopped or fell silent.', 'bad'],
    [event('instance_drains', { instance: 'node-1' }), 'node-1 drains: it takes no new turns.', 'plain'],
    [event('instance_works', { instance: 'node-1' }), 'node-1 takes new turns again.', 'plain'],
    [event('channel_moved', moved), 'telegram:default moved from node-1 to node-2. It was handed over.', 'plain'],
    [event('channel_moved', { ...moved, gapMs: 3_100 }), 'telegram:default moved from node-1 to node-2. node-1 had not been heard for 3.1 s.', 'warn'],
    [event('channel_moved', { ...moved, to: 'node-1', gapMs: 3_100 }), 'node-1 runs telegram:default again. It had not been heard for 3.1 s.', 'warn'],
    [event('channel_moved', { ...moved, from: undefined }), 'node-2 runs telegram:default.', 'plain'],
    [event('channel_unowned', { ...moved, to: undefined }), 'Nobody runs telegram:default; node-1 did before.', 'bad'],
  ]) {
    assert.equal(describe(happened), text);
    assert.equal(weight(happened), how, text);
  }
});

test('an event is the same although another instance tells it, and the next one is not', () => {
  const led = event('leader_changed', { to: 'node-2' });
  assert.equal(identity(led), identity({ ...led, seenBy: 'node-3', atMs: 1, gapMs: 9 }));
  assert.notEqual(identity(led), identity({ ...led, number: 6 }));
  const drains = event('instance_drains', { instance: 'node-2' });
  assert.notEqual(identity(drains), identity({ ...drains, atMs: 900_000 }));
});

test('the verdict names what stops the cluster before what is only unwell', () => {
  const silent = (instanceId) => instance(instanceId, { answered: false });
  const is = (state, title, more, seen) => {
    const said = verdict(seen);
    assert.deepEqual([said.state, said.title], [state, title]);
    for (const text of more) assert.ok(said.more.includes(text), `${JSON.stringify(said.more)} has no ${text}`);
  };
  is('good', 'node-1 leads, in term 5', ['All 3 instances answer; 1 may fail before the cluster stops.'], overview());
  is('good', 'node-1 works alone', ['One instance survives no failure; three survive the loss of one.'], overview({ instances: [instance('node-1')] }));
  is('warn', 'node-1 leads, and one more loss stops the cluster', ['node-3 does not answer node-1.'], overview({ instances: [instance('node-1'), instance('node-2'), silent('node-3')] }));
  is('warn', 'node-1 leads, with 4 of 5 voters', ['e does not answer node-1.'], overview({ instances: [...'abcd'].map((id) => instance(id)).concat(silent('e')) }));
  is('bad', 'No leader for 3.2 s', ['1 of 3 voters answer, and 2 are needed: nothing can be accepted until more are back.', 'node-2 and node-3 do not answer node-1.'],
    overview({ leader: undefined, leaderlessMs: 3_210, instances: [instance('node-1'), silent('node-2'), silent('node-3')] }));
  is('bad', 'node-1 leads, but too few voters answer', ['1 of 3 voters answer, and 2 are needed: nothing can be accepted until more are back.'],
    overview({ instances: [instance('node-1'), silent('node-2'), silent('node-3')] }));
  is('bad', 'No leader for 90 ms', ['Nothing can be accepted until one is elected, which takes less than a second as a rule.'], overview({ leader: undefined, leaderlessMs: 90 }));
  is('warn', 'node-1 leads, but not every channel works', ['telegram:a has no owner.', 'discord:b is not connected to the platform.'],
    overview({ channels: [{ account: 'telegram:a' }, { account: 'discord:b', owner: 'node-2', connected: false }] }));
  is('warn', 'node-1 leads, in term 5', ['node-2 drains.'], overview({ instances: [instance('node-1'), instance('node-2', { draining: true }), instance('node-3')] }));
  is('warn', 'node-1 leads, and one more loss stops the cluster', ['Two voters tolerate no failure.'], overview({ instances: [instance('node-1'), instance('node-2')], warnings: ['two voters tolerate no failure'] }));
});

test('the timeline has who, when, and the moments without anybody', () => {
  const seen = overview({
    leader: 'node-3',
    channels: [{ account: 'telegram:a', owner: 'node-2' }, { account: 'webchat', everywhere: true }, { account: 'telegram:b' }],
    events: [
      event('channel_unowned', { account: 'telegram:b', from: 'node-1', atMs: 690_000 }),
      event('leader_changed', { from: 'node-2', to: 'node-3', number: 6, atMs: 650_000, gapMs: 500 }),
      event('leader_changed', { from: 'node-1', to: 'node-2', atMs: 300_000 }),
      event('channel_moved', { account: 'telegram:a', from: 'node-1', to: 'node-2', atMs: 200_000, gapMs: 3_000 }),
    ],
  });
  const { from, to, lanes } = timeline(seen);
  assert.deepEqual([from, to, lanes.map((lane) => lane.name)], [100_000, 700_000, ['Leader', 'telegram:a', 'telegram:b']]);
  const parts = (index) => lanes[index].parts.map((part) => [part.who, part.from, part.to]);
  assert.deepEqual(parts(0), [['node-1', 100_000, 300_000], ['node-2', 300_000, 649_500], ['', 649_500, 650_000], ['node-3', 650_000, 700_000]]);
  assert.deepEqual(parts(1), [['node-1', 100_000, 197_000], ['', 197_000, 200_000], ['node-2', 200_000, 700_000]]);
  assert.deepEqual(parts(2), [['node-1', 100_000, 690_000], ['', 690_000, 700_000]]);
});

test('the timeline ends where the leader was lost, and shows a minute at least and an hour at most', () => {
  const gone = timeline(overview({ leader: undefined, leaderlessMs: 10_000, events: [event('leader_changed', { from: 'node-1', to: 'node-2', atMs: 300_000 })] }));
  assert.deepEqual(gone.lanes[0].parts.at(-2), { who: 'node-2', from: 300_000, to: 690_000 });
  assert.deepEqual(gone.lanes[0].parts.at(-1), { who: '', from: 690_000, to: 700_000 });
  const young = timeline(overview({ sinceMs: 690_000 }));
  assert.deepEqual([young.from, young.lanes[0].parts], [640_000, [{ who: 'node-1', from: 690_000, to: 700_000 }]]);
  const old = timeline(overview({ atMs: 90_000_000, sinceMs: 1 }));
  assert.equal(old.to - old.from, 3_600_000);
});
