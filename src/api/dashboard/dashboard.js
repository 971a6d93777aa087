// The cluster at a glance, asked for once a second while the page is visible. What is shown is what the last answer said: when
// answers stop coming it stays, and says from when it is.
//
// Whichever instance answers asks the others, so the page shows the whole cluster wherever a balancer sends it.

import { ApiError, explain, json } from './api.js';
import { begin, lanes, lineChart, sample, spark } from './charts.js';
import { element } from './markdown.js';
import { promptForToken } from './token.js';
import { counted, describe, figure, identity, listed, span, timeline, verdict, weight } from './words.js';

const EVERY_MS = 1_000;
/** An instance that is held up must not hold up the page: the next request may reach another. */
const PATIENCE_MS = 4_000;
const SERIES_EVERY_MS = 5_000;
const LONGEST_PAUSE_MS = 5_000;
const EVENTS_SHOWN = 12;
/** Charts show a minute at least. */
const LEAST_STEPS = 12;
/** Without a leader for so long, a listener is told at once and not only afterwards. */
const WORTH_A_WORD_MS = 3_000;

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Unchanged text is left alone, for those who read or select it. @param {Element} into @param {string} text */
function write(into, text) {
  if (into.textContent !== text) into.textContent = text;
}

const clock = (/** @type {number} */ ms) => new Date(ms).toLocaleTimeString();

// ---- tables ----

/**
 * @typedef {{same: string, nodes: (Node | string)[]}} Cell shown anew when `same` changes
 * @param {string} same @param {(Node | string)[]} nodes
 * @returns {Cell}
 */
const cell = (same, ...nodes) => ({ same, nodes: nodes.length > 0 ? nodes : [same] });

/** Says what it is to assistive technology, also where a narrow screen shows it as cards. @param {HTMLTableElement} table */
function keepRoles(table) {
  table.setAttribute('role', 'table');
  for (const group of table.querySelectorAll('thead, tbody')) group.setAttribute('role', 'rowgroup');
  for (const row of table.querySelectorAll('thead tr')) row.setAttribute('role', 'row');
  for (const head of table.querySelectorAll('thead th')) head.setAttribute('role', 'columnheader');
}

/** @param {HTMLTableElement} table @param {{key: string, cells: Cell[]}[]} rows the first cell of each names it */
function fill(table, rows) {
  const body = table.tBodies[0];
  const heads = [...(table.tHead?.rows[0].cells ?? [])];
  const known = new Map([...body.rows].map((row) => [row.dataset.key ?? '', row]));
  const wanted = rows.map(({ key, cells }) => {
    const row = known.get(key) ?? /** @type {HTMLTableRowElement} */ (element('tr', { role: 'row', 'data-key': key }));
    cells.forEach((each, index) => {
      let shown = row.cells[index];
      if (!shown) {
        shown = /** @type {any} */ (index === 0 ? element('th', { scope: 'row', role: 'rowheader' }) : element('td', { role: 'cell' }));
        shown.className = heads[index].className;
        shown.dataset.label = heads[index].textContent ?? '';
        row.append(shown);
      }
      if (shown.dataset.same === each.same) return;
      shown.dataset.same = each.same;
      shown.replaceChildren(...each.nodes);
    });
    return row;
  });
  if (wanted.length !== body.rows.length || wanted.some((row, index) => body.rows[index] !== row)) body.replaceChildren(...wanted);
}

/** A table of figures. @param {string} caption @param {string[]} heads @param {string[][]} rows */
function plainTable(caption, heads, rows) {
  return element('table', {},
    element('caption', {}, caption),
    element('thead', {}, element('tr', {}, ...heads.map((head) => element('th', { scope: 'col' }, head)))),
    element('tbody', {}, ...rows.map(([first, ...rest]) =>
      element('tr', {}, element('th', { scope: 'row' }, first), ...rest.map((text) => element('td', {}, text))))));
}

/** Fills a table beside a chart, which nobody sees until it is opened. @param {HTMLDetailsElement} details @param {() => Node} make */
function beside(details, make) {
  const into = /** @type {Element} */ (details.querySelector('div'));
  const show = () => details.open && into.replaceChildren(make());
  details.ontoggle = show;
  // Who reads in it is not to lose the place.
  if (!into.matches(':focus-within, :hover')) show();
}

// ---- parts of the page ----

/** @param {any} instance */
function state(instance) {
  if (!instance.live) return ['bad', 'gone'];
  if (!instance.answered) return ['warn', 'does not answer'];
  return instance.draining ? ['warn', 'draining'] : ['good', 'live'];
}

/** @param {any} overview */
function showInstances(overview) {
  const rows = overview.instances.map((/** @type {any} */ each) => {
    const { instanceId, role, load, activity } = each;
    const [weight, word] = state(each);
    const leads = instanceId === overview.leader;
    const asked = instanceId === overview.instanceId;
    const line = each.answered ? series?.instances[instanceId]?.turnsPerSecond : null;
    const turns = activity ? figure(activity.turnsPerSecond) : '–';
    const waiting = load?.turnsWaiting > 0 ? ` + ${load.turnsWaiting} waiting` : '';
    return {
      key: instanceId,
      cells: [
        cell(instanceId),
        cell(leads ? 'leads' : role, ...(leads ? [element('span', { class: 'leads' }, element('span', { 'aria-hidden': 'true' }, '★ '), 'Leader')] : [role === 'learner' ? 'Learner' : 'Follower'])),
        cell(`${word} ${each.silence ?? ''} ${asked}`, element('span', { class: `state ${weight}` }, word), ...(word === 'does not answer' && each.silence ? [element('span', { class: 'hint' }, ` ${each.silence}`)] : [])),
        cell(each.lag === undefined ? '–' : each.lag.toLocaleString('en')),
        cell(load ? `${load.turnsRunning}${waiting}` : '–'),
        cell(`${turns} ${line ? seriesEnd : 0}`, ...(line ? [spark(line.slice(begin([line], LEAST_STEPS))), ' '] : []), element('span', { class: 'figure' }, turns)),
        cell(activity ? figure(activity.requestsPerSecond) : '–'),
        cell(each.version ?? '–'),
        cell(each.lastSeenMs === undefined ? '–' : each.live && each.lastSeenMs < 2_000 ? 'now' : `${span(each.lastSeenMs)} ago`),
      ],
    };
  });
  fill($('instances'), rows);
}

/** @param {any} overview */
function showWork(overview) {
  const { activity, instances } = overview;
  const sum = (/** @type {string} */ what) => instances.reduce((/** @type {number} */ all, /** @type {any} */ each) => all + (each.load?.[what] ?? 0), 0);
  const answering = instances.filter((/** @type {any} */ each) => each.answered).length;
  const over = activity.overMs >= 55_000 ? 'of the last minute' : activity.overMs > 0 ? `of ${span(activity.overMs)}, since it is measured` : '';
  const of = answering === instances.length ? counted(answering, 'instance') : `the instances that answer, ${answering} of ${instances.length}`;
  write($('work-of'), `Of ${of}.${over ? ` Averages ${over}.` : ''}`);
  const waiting = sum('turnsWaiting');
  const streams = sum('streams');
  write($('tile-running'), sum('turnsRunning').toLocaleString('en'));
  write($('tile-waiting'), waiting > 0 ? `${waiting} waiting, ${counted(streams, 'stream')}` : counted(streams, 'stream'));
  write($('tile-turns'), figure(activity.turnsPerSecond));
  write($('tile-failed'), activity.failedTurnsPerSecond > 0 ? `${figure(activity.failedTurnsPerSecond)} failed` : 'none failed');
  write($('tile-requests'), figure(activity.requestsPerSecond));
  write($('tile-refused'), activity.refusedPerSecond > 0 ? `${figure(activity.refusedPerSecond)} refused` : 'none refused');
  write($('tile-tokens'), figure(activity.inputTokensPerSecond + activity.outputTokensPerSecond));
  write($('tile-in'), `${figure(activity.inputTokensPerSecond)} in, ${figure(activity.outputTokensPerSecond)} out`);
  for (const [name, times] of [['turn', activity.turnTime], ['commit', activity.commitTime]]) {
    write($(`tile-${name}`), times ? span(times.p50Ms) : '–');
    write($(`tile-${name}-more`), times ? `95% ${span(times.p95Ms)}, 99% ${span(times.p99Ms)}` : 'none in this time');
  }
}

/** @param {any} overview */
function showChannels(overview) {
  const bots = overview.channels.filter((/** @type {any} */ each) => !each.everywhere);
  $('no-channels').hidden = bots.length > 0;
  $('channels').hidden = bots.length === 0;
  const ago = (/** @type {number | undefined} */ ms) => (ms ? `${span(Math.max(overview.atMs - ms, 0))} ago` : 'none yet');
  fill($('channels'), bots.map((/** @type {any} */ each) => {
    const platform = each.connected === undefined ? ['warn', 'not known'] : each.connected ? ['good', 'connected'] : ['bad', 'not connected'];
    const { waiting, unknown, failed, oldestMs } = each.outbox;
    const owner = each.owner ? (each.movingTo ? `${each.owner}, moving to ${each.movingTo}` : each.owner) : 'nobody';
    const stuck = [unknown > 0 && `${unknown} unknown`, failed > 0 && `${failed} failed`].filter(Boolean).join(', ');
    return {
      key: each.account,
      cells: [
        cell(each.account),
        cell(owner, ...(each.owner ? [owner] : [element('span', { class: 'state bad' }, owner)])),
        cell(each.sinceMs ? span(Math.max(overview.atMs - each.sinceMs, 0)) : '–'),
        cell(`${platform[1]} ${each.lastError ?? ''}`, element('span', { class: `state ${platform[0]}` }, platform[1]), ...(each.lastError ? [element('span', { class: 'hint' }, ` ${each.lastError}`)] : [])),
        cell(waiting > 0 && oldestMs ? `${waiting}, for ${span(oldestMs)}` : String(waiting)),
        cell(stuck || '0'),
        cell(ago(each.lastInboundMs)),
      ],
    };
  }));
}

let allEvents = false;
$('more-events').addEventListener('click', () => {
  allEvents = true;
  if (last) showEvents(last);
});

/** @param {any} overview */
function showEvents(overview) {
  const { events, sinceMs } = overview;
  write($('events-since'), sinceMs ? `Watched since ${new Date(sinceMs).toLocaleString()}, when the first of those that answer began.` : 'Nobody watches yet: an instance does so once it has registered.');
  $('no-events').hidden = events.length > 0 || !sinceMs;
  const shown = allEvents ? events : events.slice(0, EVENTS_SHOWN);
  const list = $('events');
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = shown.map((/** @type {any} */ event) => {
    const key = identity(event);
    const text = describe(event);
    const item = known.get(key);
    if (item && item.lastChild?.textContent === text) return item;
    const date = new Date(event.atMs);
    return element('li', { class: weight(event), 'data-key': key },
      element('time', { datetime: date.toISOString(), title: `${date.toLocaleString()}, seen by ${event.seenBy}` }, clock(event.atMs)),
      element('span', {}, text));
  });
  if (items.length !== list.children.length || items.some((/** @type {Element} */ item, /** @type {number} */ index) => list.children[index] !== item)) list.replaceChildren(...items);
  $('more-events').hidden = shown.length === events.length;
  write($('more-events'), `Show all ${events.length}`);
}

/** @param {any} overview */
function showVerdict(overview) {
  const { state, title, more } = verdict(overview);
  $('verdict').dataset.state = state;
  write($('verdict-mark'), { good: '✓', warn: '!', bad: '✕' }[state]);
  write($('verdict-title'), title);
  const list = $('verdict-more');
  if (list.dataset.same !== more.join('\n')) {
    list.dataset.same = more.join('\n');
    list.replaceChildren(...more.map((text) => element('li', {}, text)));
  }
}

// ---- charts ----

/** @type {any} */
let series = null;
let seriesAt = 0;
let seriesEnd = 0;

/** @param {string} name @param {(number | null)[]} values @param {(value: number) => string} say */
function summarize(name, values, say) {
  const known = /** @type {number[]} */ (values.filter((value) => value !== null));
  if (known.length === 0) return `${name}: nothing yet.`;
  return `${name}: ${say(known[known.length - 1])} at last, ${say(Math.max(...known))} at most.`;
}

/** @param {string} id @param {{name: string, last: string}[]} lines */
function showLegend(id, lines) {
  const legend = $(id);
  if (legend.children.length !== lines.length) {
    legend.replaceChildren(...lines.map((_, index) => element('span', {}, sample(index), element('span', {}))));
  }
  lines.forEach(({ name, last }, index) => write(legend.children[index].lastChild, `${name} ${last}`));
}

function showCharts() {
  if (!series) return;
  const { stepMs, endMs } = series;
  const whole = /** @type {Record<string, (number | null)[]>} */ (series.total);
  if ((whole.turnsPerSecond?.length ?? 0) === 0) return;
  const from = begin(Object.values(whole), LEAST_STEPS);
  const total = Object.fromEntries(Object.entries(whole).map(([name, values]) => [name, values.slice(from)]));
  const steps = total.turnsPerSecond.length;
  const past = `${span(steps * stepMs)} ago`;
  const last = (/** @type {(number | null)[]} */ values) => values.findLast((value) => value !== null) ?? null;
  const or = (/** @type {number | null} */ value, /** @type {(value: number) => string} */ say) => (value === null ? '–' : say(value));

  const rates = [
    { name: 'Turns', values: total.turnsPerSecond },
    { name: 'Requests', values: total.requestsPerSecond },
  ];
  lineChart($('rates'), { lines: rates, label: (tick) => tick.toLocaleString('en'), past, summary: `Per second, over ${span(steps * stepMs)}. ${rates.map((line) => summarize(line.name, line.values, figure)).join(' ')}` });
  showLegend('rates-legend', rates.map(({ name, values }) => ({ name, last: or(last(values), figure) })));

  const times = [
    { name: 'Turns', values: total.turnP95Ms },
    { name: 'Requests', values: total.requestP95Ms },
    { name: 'Commits', values: total.commitP95Ms },
  ];
  lineChart($('times'), { lines: times, log: true, label: span, past, summary: `What 95 of 100 take at most, over ${span(steps * stepMs)}, on a scale of powers of ten. ${times.map((line) => summarize(line.name, line.values, span)).join(' ')}` });
  showLegend('times-legend', times.map(({ name, values }) => ({ name, last: or(last(values), span) })));

  const rowsOf = (/** @type {{values: (number | null)[]}[]} */ lines, /** @type {(value: number) => string} */ say) =>
    Array.from({ length: steps }, (_, back) => steps - 1 - back)
      .filter((index) => lines.some((line) => line.values[index] !== null))
      .map((index) => [clock(endMs - (steps - 1 - index) * stepMs), ...lines.map((line) => or(line.values[index], say))]);
  const tokens = { name: 'Tokens', values: total.tokensPerSecond };
  beside($('rates-table'), () => plainTable(`Per second, in steps of ${span(stepMs)}`, ['Until', ...rates.map((line) => line.name), 'Tokens'], rowsOf([...rates, tokens], figure)));
  beside($('times-table'), () => plainTable(`What 95 of 100 take at most, in steps of ${span(stepMs)}`, ['Until', ...times.map((line) => line.name)], rowsOf(times, span)));
}

/** @param {any} overview */
function showTimeline(overview) {
  const time = timeline(overview);
  const names = overview.instances.map((/** @type {any} */ each) => each.instanceId);
  const past = `${span(time.to - time.from)} ago`;
  const said = time.lanes.map(({ name, parts }) => {
    const who = [...new Set(parts.map((part) => part.who).filter(Boolean))];
    const changes = parts.filter((part) => part.who).length - 1;
    return `${name}: ${who.length > 0 ? `${listed(who)}${changes > 0 ? `, ${counted(changes, 'change')}` : ''}` : 'nobody'}.`;
  });
  lanes($('timeline'), time, names, { past, summary: `Over ${span(time.to - time.from)}. ${said.join(' ')}` });
  const rows = time.lanes.flatMap(({ name, parts }) => parts.map((part) => [name, part.who || 'nobody', clock(part.from), clock(part.to), span(part.to - part.from)])).reverse();
  beside($('timeline-table'), () => plainTable('Who led, and who ran which account; the newest first', ['What', 'Who', 'From', 'Until', 'For'], rows));
}

// A chart is as wide as its place, whatever changes that.
let width = 0;
new ResizeObserver(() => {
  const now = $('timeline').clientWidth + $('rates').clientWidth;
  if (now === width || !last) return;
  width = now;
  showCharts();
  showTimeline(last);
}).observe($('shown'));

// ---- what is said aloud ----

/** The highest term whose leader was shown, and whether its absence was spoken of. */
let told = { term: 0, missing: false };

/** A failover is said once, when it is over; one that lasts is said when that is plain. @param {any} overview */
function announce(overview) {
  const first = told.term === 0 && !told.missing;
  const change = overview.events.find((/** @type {any} */ event) => event.kind === 'leader_changed' && event.number === overview.term);
  if (overview.leader && overview.term > told.term) {
    told = { term: overview.term, missing: false };
    if (!first) say(change ? describe(change) : `${overview.leader} leads, in term ${overview.term}.`);
  } else if (!overview.leader && overview.leaderlessMs > WORTH_A_WORD_MS && !told.missing) {
    told.missing = true;
    say('The cluster has no leader.');
  } else if (overview.leader && told.missing) {
    told.missing = false;
    say(`${overview.leader} leads.`);
  }
}

/** @param {string} text */
function say(text) {
  $('announcer').textContent = text;
}

// ---- the connection ----

/** @type {any} */
let last = null;

/** @param {any} overview */
function show(overview) {
  last = overview;
  if (overview.series) {
    series = overview.series;
    seriesAt = performance.now();
    seriesEnd = series.endMs;
  }
  $('shown').hidden = false;
  write($('name'), overview.clusterId);
  write($('by'), `${overview.instanceId}, at ${clock(overview.atMs)}`);
  showVerdict(overview);
  showInstances(overview);
  showWork(overview);
  showChannels(overview);
  showEvents(overview);
  showTimeline(overview);
  if (overview.series) showCharts();
  announce(overview);
}

/** @param {'open' | 'lost' | 'waiting'} state @param {string} text */
function showConnection(state, text) {
  const shown = $('connection');
  shown.dataset.state = state;
  write(shown, text);
  document.body.classList.toggle('old', state === 'lost' && last !== null);
}

/** @param {string | null} text @param {boolean} [waits] for somebody to try again */
function notice(text, waits = false) {
  $('notice').hidden = text === null;
  write($('notice-text'), text ?? '');
  $('retry').hidden = !waits;
}

const TEXTS = /** @type {Record<string, string>} */ ({
  offline: 'No instance can be reached.',
  not_found: 'The instance that answered is of a release without this page.',
  unauthorized: 'The gateway needs its access token.',
});

/** @param {unknown} error */
function lost(error) {
  const code = error instanceof ApiError ? error.code : 'timeout';
  const why = TEXTS[code] ?? (error instanceof ApiError ? explain(error) : `No answer within ${span(PATIENCE_MS)}.`);
  const old = last ? ` What you see is from ${clock(last.atMs)}.` : '';
  showConnection('lost', code === 'unauthorized' ? 'No access' : 'Connection lost, trying again');
  notice(`${why}${old}`, code === 'unauthorized');
}

const visible = () =>
  new Promise((/** @type {(value?: unknown) => void} */ resolve) => {
    const look = () => {
      if (document.visibilityState !== 'visible') return;
      document.removeEventListener('visibilitychange', look);
      resolve();
    };
    document.addEventListener('visibilitychange', look);
    look();
  });
const asked = () => new Promise((resolve) => $('retry').addEventListener('click', resolve, { once: true }));

async function watch() {
  for (let failures = 0; ; ) {
    await visible();
    const withSeries = performance.now() - seriesAt > SERIES_EVERY_MS || !series;
    try {
      const overview = await json(withSeries ? 'overview?series=true' : 'overview', { signal: AbortSignal.timeout(PATIENCE_MS) });
      failures = 0;
      showConnection('open', 'Live');
      notice(null);
      show(overview);
      await sleep(EVERY_MS);
    } catch (error) {
      failures += 1;
      if (error instanceof ApiError && error.code === 'unauthorized') {
        lost(error);
        await asked();
      } else if (failures > 1) {
        lost(error);
        await sleep(Math.min(EVERY_MS * (failures - 1), LONGEST_PAUSE_MS));
      } else {
        // The instance that answered may just have died: another is asked before anything is said.
        await sleep(100);
      }
    }
  }
}

for (const table of document.querySelectorAll('table.cards')) keepRoles(/** @type {HTMLTableElement} */ (table));
promptForToken(() => {});
watch();
