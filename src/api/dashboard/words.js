// What the cluster's state means, in words and spans of time. Pure: data in, text out, so that it is tested without a browser.

/**
 * @typedef {object} Event
 * @property {string} kind
 * @property {number} atMs
 * @property {string} seenBy
 * @property {string} [instance]
 * @property {string} [account]
 * @property {string} [from]
 * @property {string} [to]
 * @property {number} number
 * @property {number} [gapMs]
 * @property {string} [version]
 */

/** @typedef {{instanceId: string, role: string, live: boolean, draining: boolean, answered: boolean, silence?: string, lag?: number}} Instance */
/** @typedef {{account: string, everywhere?: boolean, owner?: string, sinceMs?: number, movingTo?: string, connected?: boolean, lastError?: string}} Channel */
/** @typedef {{instanceId: string, atMs: number, leader?: string, term: number, leaderlessMs?: number, sinceMs?: number, instances: Instance[], channels: Channel[], events: Event[], warnings?: string[]}} Overview */

/** A span as a person says it. @param {number} ms */
export function span(ms) {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${Number((ms / 1_000).toFixed(1))} s`;
  if (ms < 120_000) return `${Math.round(ms / 1_000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

/** A number with as many places as it is worth. @param {number} value */
export function figure(value) {
  if (value === 0) return '0';
  if (value < 0.01) return '<0.01';
  if (value < 1) return value.toFixed(2);
  if (value < 100) return value.toFixed(1);
  return Math.round(value).toLocaleString('en');
}

/** @param {number} count @param {string} one @param {string} [many] */
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

/** "a", "a and b", "a, b and c". @param {string[]} names */
export function listed(names) {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}

/** What happened, as a sentence. @param {Event} event */
export function describe(event) {
  const { instance, account, from, to, number, gapMs, version } = event;
  switch (event.kind) {
    case 'leader_changed': {
      const after = from && from !== to ? `, after ${from}` : '';
      const gap = gapMs ? ` There was no leader for ${span(gapMs)}.` : '';
      return `${to} leads, in term ${number}${after}.${gap}`;
    }
    case 'leader_reached':
      if (instance === to) return `${instance} leads, but heard of no quorum for ${span(gapMs ?? 0)}.`;
      return `${instance} had no contact with its leader ${to} for ${span(gapMs ?? 0)}.`;
    case 'instance_came':
      return `${instance} is there${version ? `, version ${version}` : ''}.`;
    case 'instance_went':
      return `${instance} is gone: it stopped or fell silent.`;
    case 'instance_drains':
      return `${instance} drains: it takes no new turns.`;
    case 'instance_works':
      return `${instance} takes new turns again.`;
    case 'channel_moved': {
      if (!from) return `${to} runs ${account}.`;
      const how = gapMs ? ` ${from === to ? 'It' : from} had not been heard for ${span(gapMs)}.` : from === to ? '' : ' It was handed over.';
      return from === to ? `${to} runs ${account} again.${how}` : `${account} moved from ${from} to ${to}.${how}`;
    }
    case 'channel_unowned':
      return `Nobody runs ${account}; ${from} did before.`;
    default:
      return `Something happened that this page does not know: ${event.kind}.`;
  }
}

/** Events that nobody would wish for have another mark than planned ones. @param {Event} event @returns {'bad' | 'warn' | 'plain'} */
export function weight(event) {
  if (event.kind === 'instance_went' || event.kind === 'channel_unowned') return 'bad';
  if (event.kind === 'leader_reached') return 'warn';
  if ((event.kind === 'leader_changed' || event.kind === 'channel_moved') && event.gapMs) return 'warn';
  return 'plain';
}

/** The same event, however often it is told. @param {Event} event */
export const identity = (event) =>
  [event.kind, event.instance, event.account, event.number, ['leader_reached', 'instance_drains', 'instance_works'].includes(event.kind) ? event.atMs : ''].join(' ');

/**
 * What an operator wants to know first.
 * @param {Overview} overview
 * @returns {{state: 'good' | 'warn' | 'bad', title: string, more: string[]}}
 */
export function verdict(overview) {
  const { instances, channels, leader, leaderlessMs } = overview;
  const voters = instances.filter((each) => each.role !== 'learner');
  const there = voters.filter((each) => each.answered);
  const silent = instances.filter((each) => !each.answered);
  const needed = Math.floor(voters.length / 2) + 1;
  const spare = there.length - needed;
  /** @type {string[]} */
  const more = [];
  if (silent.length > 0) {
    more.push(`${listed(silent.map((each) => each.instanceId))} ${silent.length === 1 ? 'does' : 'do'} not answer ${overview.instanceId}.`);
  }
  const unowned = channels.filter((each) => !each.everywhere && !each.owner);
  if (unowned.length > 0) more.push(`${listed(unowned.map((each) => each.account))} ${unowned.length === 1 ? 'has' : 'have'} no owner.`);
  const deaf = channels.filter((each) => each.owner && each.connected === false);
  if (deaf.length > 0) more.push(`${listed(deaf.map((each) => each.account))} ${deaf.length === 1 ? 'is' : 'are'} not connected to the platform.`);
  const draining = instances.filter((each) => each.live && each.draining);
  if (draining.length > 0) more.push(`${listed(draining.map((each) => each.instanceId))} ${draining.length === 1 ? 'drains' : 'drain'}.`);
  more.push(...(overview.warnings ?? []).map((text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`));

  const few = `${there.length} of ${voters.length} voters answer, and ${needed} are needed: nothing can be accepted until more are back.`;
  if (!leader) {
    const since = leaderlessMs ? ` for ${span(leaderlessMs)}` : '';
    const why = spare < 0
      ? few
      : 'Nothing can be accepted until one is elected, which takes less than a second as a rule.';
    return { state: 'bad', title: `No leader${since}`, more: [why, ...more] };
  }
  // It may lead still in name, until the instance that was asked hears that it gave up.
  if (spare < 0) return { state: 'bad', title: `${leader} leads, but too few voters answer`, more: [few, ...more] };
  if (spare < 1 && voters.length > 1) {
    return { state: 'warn', title: `${leader} leads, and one more loss stops the cluster`, more };
  }
  if (unowned.length > 0 || deaf.length > 0 || silent.length > 0) {
    const title = silent.length > 0 ? `${leader} leads, with ${there.length} of ${voters.length} voters` : `${leader} leads, but not every channel works`;
    return { state: 'warn', title, more };
  }
  if (voters.length === 1) {
    return { state: draining.length > 0 ? 'warn' : 'good', title: `${leader} works alone`, more: [...more, 'One instance survives no failure; three survive the loss of one.'] };
  }
  const reserve = `All ${instances.length} instances answer; ${counted(spare, 'may fail', 'may fail')} before the cluster stops.`;
  return { state: draining.length > 0 ? 'warn' : 'good', title: `${leader} leads, in term ${overview.term}`, more: [reserve, ...more] };
}

/** The shortest part of the past that the timeline shows, and the longest. */
const SHORTEST = 60_000;
const LONGEST = 3_600_000;

/**
 * Who led, and who ran which channel, since when this is known but for an hour at most.
 * @param {Overview} overview
 * @returns {{from: number, to: number, lanes: {name: string, parts: {who: string, from: number, to: number}[]}[]}}
 *   `who` is empty where nobody did
 */
export function timeline(overview) {
  const to = overview.atMs;
  const known = Math.min(overview.sinceMs ?? to, to);
  const from = Math.min(Math.max(known, to - LONGEST), to - SHORTEST);
  const events = [...overview.events].reverse();
  /**
   * @param {string} name
   * @param {Event[]} changes oldest first
   * @param {string} now @param {number} nobodyMs for how long there has been nobody
   */
  const lane = (name, changes, now, nobodyMs) => {
    /** @type {{who: string, from: number, to: number}[]} */
    const parts = [];
    /** @param {string} who @param {number} begin @param {number} end */
    const add = (who, begin, end) => {
      const [first, last] = [Math.max(begin, from), Math.min(end, to)];
      if (last > first) parts.push({ who, from: first, to: last });
    };
    let since = known;
    let who = changes.length > 0 ? changes[0].from ?? '' : now;
    for (const change of changes) {
      const nobody = Math.max(change.atMs - (change.gapMs ?? 0), since);
      add(who, since, who === '' ? change.atMs : nobody);
      if (who !== '') add('', nobody, change.atMs);
      [who, since] = [change.kind === 'channel_unowned' ? '' : change.to ?? '', change.atMs];
    }
    const gone = now === '' && who !== '' ? Math.max(to - nobodyMs, since) : to;
    add(who, since, gone);
    add('', gone, to);
    return { name, parts };
  };
  const lanes = [lane('Leader', events.filter((event) => event.kind === 'leader_changed'), overview.leader ?? '', overview.leaderlessMs ?? 0)];
  for (const channel of overview.channels.filter((each) => !each.everywhere)) {
    const moves = events.filter((event) => event.account === channel.account);
    lanes.push(lane(channel.account, moves, channel.owner ?? '', 0));
  }
  return { from, to, lanes };
}
