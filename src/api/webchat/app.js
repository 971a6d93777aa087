// WebChat: one conversation at a time, streamed from whichever instance answers, and the list of the others.
//
// The gateway holds the truth. The page keeps three things of its own in sessionStorage: the token, unsent drafts, and a
// message whose acceptance it has not seen yet, which it sends again after a reload under the same idempotency key.

import { ApiError, explain, json, memory, request, uuid } from './api.js';
import { refreshCluster, watchCluster } from './cluster.js';
import { element, show } from './markdown.js';
import * as sessions from './sessions.js';
import { promptForToken } from './token.js';
import { follow } from './turn.js';

const HISTORY_PAGE = 40;

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
const box = /** @type {HTMLTextAreaElement} */ ($('message'));
const scroller = /** @type {HTMLElement} */ ($('scroller'));
const messages = /** @type {HTMLElement} */ ($('messages'));
const { current } = sessions;

/** What is being read, so that leaving a conversation stops reading and nothing else. */
let reading = new AbortController();
/** The turn that is answered now, once it has an id. @type {string | null} */
let turnId = null;
let busy = false;
/** Sequence numbers of the oldest and newest entries shown. */
let oldest = 1;
let newest = 0;
/** Whether the newest line stays in view. A reader who scrolls up is left alone. */
let pinned = true;
/** @param {string} key */
const draftName = (key) => `openclaw.draft.${key}`;
/** @param {string} key */
const pendingName = (key) => `openclaw.pending.${key}`;

// ---- messages ----

/**
 * @param {'user' | 'assistant' | 'system' | 'tool'} role
 * @param {string} text
 */
function message(role, text) {
  const names = { user: 'You', assistant: 'OpenClaw', system: 'System', tool: 'Tool result' };
  const body = element('div', { class: 'body' });
  const meta = element('p', { class: 'meta' });
  // What people wrote is shown as they wrote it; only a model's text is read as Markdown.
  if (role === 'assistant') show(body, text);
  else body.textContent = text;
  const content = role === 'tool' ? element('details', {}, element('summary', {}, names.tool), body) : body;
  const item = element('li', { class: `message ${role}` }, element('h2', { class: 'visually-hidden' }, names[role]), content, meta);
  return { item, body, meta };
}

/** @param {Element} meta @param {(string | undefined | false)[]} parts */
function describe(meta, ...parts) {
  meta.textContent = parts.filter(Boolean).join(' · ');
}

/** @param {{role: any, text: string, createdMs: number, turnId?: string, model?: string, usage?: any}} entry */
function entryElement(entry) {
  const { item, meta } = message(entry.role, entry.text);
  const parts = [entry.model, entry.usage && `${entry.usage.totalTokens} tokens`, sessions.when(entry.createdMs)];
  describe(meta, ...parts);
  if (entry.role === 'assistant' && entry.turnId) {
    instanceOf(entry.turnId).then((instance) => describe(meta, instance && `answered by ${instance}`, ...parts));
  }
  return item;
}

/** @type {Map<string, string>} */
const instances = new Map();
/** Which instance ran a turn; turns that are no longer kept have none. @param {string} turn */
async function instanceOf(turn) {
  if (!instances.has(turn)) instances.set(turn, (await json(`turns/${turn}`).catch(() => ({}))).runner ?? '');
  return instances.get(turn);
}

// ---- scrolling ----

let lastTop = 0;
const toEnd = () => (scroller.scrollTop = scroller.scrollHeight);
function keepPlace() {
  if (pinned) toEnd();
  $('latest').hidden = pinned;
}
scroller.addEventListener('scroll', () => {
  // Only moving up lets go: text that grew since the last scroll is not the reader's doing.
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  if (atEnd) pinned = true;
  else if (scroller.scrollTop < lastTop) pinned = false;
  lastTop = scroller.scrollTop;
  $('latest').hidden = pinned;
}, { passive: true });
new ResizeObserver(keepPlace).observe(scroller);
$('latest').addEventListener('click', () => {
  pinned = true;
  keepPlace();
  box.focus();
});

// ---- one conversation ----

/** Shows a conversation from its newest page, and goes on reading the answer that is under way. @param {string} key */
async function openSession(key) {
  reading.abort();
  reading = new AbortController();
  const { signal } = reading;
  current.key = key;
  messages.replaceChildren();
  [oldest, newest, turnId, pinned] = [1, 0, null, true];
  busy = false;
  notice(null);
  writeBox(memory.get(draftName(key)) ?? '');
  showTitle();
  sidebar(false);
  try {
    const session = await json(sessions.pathOf(key), { signal }).catch((error) => {
      if (error.code === 'not_found') return null; // Not written to yet.
      throw error;
    });
    if (session) {
      await loadBefore(session.headSeq + 1, signal);
      if (oldest === 1) sessions.setTitle(key, messages.querySelector('.user .body')?.textContent ?? '');
    }
    showTitle();
    const pending = memory.get(pendingName(key));
    if (pending) await converse({ post: JSON.parse(pending) });
    else if (session?.runningTurn) await converse({ turnId: session.runningTurn });
  } catch (error) {
    if (!signal.aborted) complain(error, () => openSession(key));
  }
}

/** @param {number} before entries below this sequence number @param {AbortSignal} signal */
async function loadBefore(before, signal) {
  const after = Math.max(0, before - 1 - HISTORY_PAGE);
  const limit = before - 1 - after;
  if (limit > 0) {
    const { entries } = await json(`${sessions.pathOf(current.key ?? '')}/entries?after=${after}&limit=${limit}`, { signal });
    signal.throwIfAborted();
    const height = scroller.scrollHeight;
    messages.prepend(...entries.map(entryElement));
    oldest = after + 1;
    newest = Math.max(newest, before - 1);
    if (!pinned) scroller.scrollTop += scroller.scrollHeight - height;
  }
  $('earlier').hidden = oldest <= 1;
  $('empty').hidden = messages.children.length > 0;
  keepPlace();
}

/** @type {Promise<void> | null} */
let loading = null;
function loadEarlier() {
  if (oldest <= 1) return;
  const { signal } = reading;
  loading ??= loadBefore(oldest, signal)
    .catch((error) => void (signal.aborted || complain(error, loadEarlier)))
    .finally(() => (loading = null));
}
$('earlier').addEventListener('click', loadEarlier);
new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && !pinned && loadEarlier(), { root: scroller, rootMargin: '300px' }).observe($('earlier'));

/** Shows what other windows and channels added meanwhile. */
async function catchUp() {
  const { signal } = reading;
  const key = current.key ?? '';
  if (busy) return;
  const session = await json(sessions.pathOf(key), { signal }).catch(() => null);
  if (busy || signal.aborted || !session) return;
  if (session.headSeq > newest) {
    const { entries } = await json(`${sessions.pathOf(key)}/entries?after=${newest}&limit=200`, { signal });
    if (busy || signal.aborted) return;
    messages.append(...entries.map(entryElement));
    newest = entries.at(-1)?.seq ?? newest;
    $('empty').hidden = messages.children.length > 0;
    keepPlace();
  }
  if (session.runningTurn) await converse({ turnId: session.runningTurn });
}

/**
 * Sends a message or takes an answer up again, and shows the answer to its end.
 * @param {{post: {message: string, idempotencyKey: string}} | {turnId: string}} what
 */
async function converse(what) {
  const { signal } = reading;
  const key = current.key ?? '';
  const post = 'post' in what ? what.post : null;
  const sent = post && message('user', post.message);
  const { item, body, meta } = message('assistant', '');
  if (sent) messages.append(sent.item);
  messages.append(item);
  item.classList.add('pending');
  item.setAttribute('aria-busy', 'true');
  $('empty').hidden = true;
  notice(null);
  busy = pinned = true;
  showComposer();
  if (post) memory.set(pendingName(key), JSON.stringify(post));

  /** @type {import('./turn.js').Answer | undefined} */
  let answer;
  let frame = 0;
  let restarts = 0;
  const draw = () => {
    frame = 0;
    if (!answer) return;
    show(body, answer.text);
    describeAnswer(meta, answer);
    keepPlace();
  };
  try {
    answer = await follow(post ? { post: { body: { sessionKey: key, message: post.message }, idempotencyKey: post.idempotencyKey } } : { turnId: /** @type {any} */ (what).turnId }, {
      signal,
      onChange(next, link) {
        answer = next;
        if (next.turnId !== turnId) {
          // Accepted: from here on the gateway remembers the message.
          turnId = next.turnId;
          memory.set(pendingName(key), null);
          if (sent) describe(sent.meta, sessions.when(Date.now()));
          showComposer();
        }
        if (next.restarts > restarts) {
          restarts = next.restarts;
          json(`turns/${next.turnId}`).then(({ runner }) => {
            next.instanceId = runner;
            frame ||= requestAnimationFrame(draw);
          }, () => {});
        }
        showConnection(link);
        frame ||= requestAnimationFrame(draw);
      },
    });
    if (answer.failure) throw answer.failure;
    instances.set(answer.turnId ?? '', answer.instanceId);
  } catch (error) {
    if (signal.aborted) return;
    failed(error, { what, key, answer, item, sent });
  } finally {
    cancelAnimationFrame(frame);
    if (!signal.aborted) finish();
  }

  function finish() {
    draw();
    item.classList.remove('pending');
    item.removeAttribute('aria-busy');
    if (answer?.done) $('announcer').textContent = `OpenClaw: ${body.textContent}`;
    turnId = null;
    busy = false;
    showComposer();
    if (answer?.turnId) settle(post ? 2 : 1);
  }
}

/** @param {Element} meta @param {import('./turn.js').Answer} answer */
function describeAnswer(meta, { instanceId, done, failure, restarts, tools }) {
  const running = [...tools].filter(([, finished]) => !finished).map(([name]) => name);
  describe(
    meta,
    failure && (failure.code === 'cancelled' ? 'stopped' : 'not finished'),
    instanceId && `${done ? 'answered by' : 'from'} ${instanceId}`,
    restarts > 0 && 'continued after a failover',
    running.length > 0 && `using ${running.join(', ')}`,
    done?.model,
    done && `${done.usage.totalTokens} tokens`,
    done && sessions.when(Date.now()),
  );
}

/**
 * Says what went wrong and offers what can be done about it.
 * @param {unknown} error
 * @param {{what: any, key: string, answer?: import('./turn.js').Answer, item: Element, sent: {item: Element, meta: Element} | null}} where
 */
function failed(error, { what, key, answer, item, sent }) {
  if (!answer?.text) item.remove();
  if (answer?.failure?.code === 'cancelled') {
    $('announcer').textContent = 'Stopped';
  } else if (answer?.failure) {
    // The turn itself failed: another try is a new message.
    complain(error, what.post ? () => converse({ post: { ...what.post, idempotencyKey: uuid() } }) : null);
  } else if (answer?.turnId) {
    // Only the connection was given up; the turn goes on.
    complain(error, () => openSession(key));
  } else if (error instanceof ApiError && !error.retryable && error.code !== 'unauthorized') {
    // Refused for good: back into the box, to be changed.
    memory.set(pendingName(key), null);
    sent?.item.remove();
    if (box.value.trim() === '') writeBox(what.post.message);
    complain(error, null);
  } else {
    // Perhaps accepted, perhaps not: the same key makes trying again safe.
    if (sent) describe(sent.meta, 'not sent yet');
    complain(error, () => {
      sent?.item.remove();
      converse(what);
    });
  }
}

/**
 * Takes note of where the conversation now ends. If others wrote to it meanwhile, it is read again.
 * @param {number} most entries that the answer added
 */
async function settle(most) {
  const key = current.key ?? '';
  const { signal } = reading;
  refreshSessions();
  const session = await json(sessions.pathOf(key), { signal }).catch(() => null);
  if (!session || signal.aborted || busy) return;
  const added = session.headSeq - newest;
  newest = session.headSeq;
  if (added > most && $('notice').hidden) openSession(key);
}

// ---- composer ----

function showComposer() {
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('stop').disabled = turnId === null;
  $('send').disabled = box.value.trim() === '';
  box.style.height = 'auto';
  box.style.height = `${box.scrollHeight}px`;
}

/** @param {string} text */
function writeBox(text) {
  box.value = text;
  memory.set(draftName(current.key ?? ''), text);
  showComposer();
}

function send() {
  const text = box.value.trim();
  if (text === '') return;
  // Commands are the gateway's to know: what is none comes back to be sent.
  if (text.startsWith('/')) command(text);
  else if (!busy) say(text);
}

/** @param {string} text */
function say(text) {
  sessions.setTitle(current.key ?? '', text);
  showTitle();
  writeBox('');
  converse({ post: { message: text, idempotencyKey: uuid() } });
}

/** Has the gateway carry out a chat command, as on every other channel. @param {string} text */
async function command(text) {
  const { signal } = reading;
  const key = current.key ?? '';
  writeBox('');
  try {
    const options = { method: 'POST', headers: { 'idempotency-key': uuid() }, body: { sessionKey: key, text }, signal };
    const done = await json('chat/command', options);
    if (signal.aborted) return;
    if (done.message && busy) {
      writeBox(text);
    } else if (done.message) {
      say(done.message);
    } else {
      const asked = message('user', text);
      const said = message('system', done.reply);
      messages.append(asked.item, said.item);
      $('empty').hidden = true;
      $('announcer').textContent = done.reply;
      pinned = true;
      keepPlace();
    }
  } catch (error) {
    if (signal.aborted) return;
    if (box.value.trim() === '') writeBox(text);
    complain(error, null);
  }
}

box.addEventListener('input', () => writeBox(box.value));
box.addEventListener('keydown', (event) => {
  // While an input method composes, Enter chooses a word.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$('composer').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  send();
});
$('stop').addEventListener('click', async () => {
  const { signal } = reading;
  $('stop').disabled = true;
  box.focus();
  // A turn that has just ended answers with a conflict: the stream tells the same.
  await request(`turns/${turnId}/cancel`, { method: 'POST', signal }).catch((error) => {
    if (!signal.aborted && !['conflict', 'not_found'].includes(error.code)) complain(error, null);
  });
  showComposer();
});

// ---- notices, connection, title ----

/** @param {string | null} text @param {(() => void) | null} [again] */
function notice(text, again = null) {
  $('notice').hidden = text === null;
  $('notice-text').textContent = text ?? '';
  $('retry').hidden = again === null;
  $('retry').onclick = () => {
    notice(null);
    box.focus();
    again?.();
  };
}

/** @param {unknown} error @param {(() => void) | null} again */
function complain(error, again) {
  notice(explain(error), again);
  keepPlace();
}
$('dismiss').addEventListener('click', () => {
  notice(null);
  box.focus();
});
addEventListener('failed', (event) => complain(/** @type {CustomEvent} */ (event).detail, null));

/** @param {import('./turn.js').Link} link */
function showConnection({ state, servedBy, error }) {
  const lost = { no_quorum: 'No quorum, trying again…', busy: 'Busy, trying again…' }[error?.code ?? ''] ?? 'Reconnecting…';
  const text = { waiting: 'Sending…', open: servedBy ? `Connected to ${servedBy}` : 'Connected', lost }[state];
  const shown = $('connection');
  shown.dataset.state = state;
  // Unchanged text is left alone, or a screen reader would repeat it with every token.
  if (shown.textContent !== text) shown.textContent = text;
}

function showTitle() {
  const title = sessions.titleOf(current.key ?? '');
  $('title').textContent = title;
  document.title = `${title} – OpenClaw`;
}

// ---- conversations ----

function newSession() {
  openSession(`agent:main:dashboard:${uuid()}`);
  box.focus();
}

const onSession = {
  /** @param {string} key */
  open(key) {
    openSession(key);
    box.focus();
  },
  /** @param {string} key */
  deleted(key) {
    memory.set(draftName(key), null);
    memory.set(pendingName(key), null);
    if (key === current.key) newSession();
    refreshSessions();
  },
};

async function refreshSessions() {
  await sessions.refresh(onSession).then(showTitle, (error) => {
    // With messages on the screen a stale list does no harm.
    if (messages.children.length === 0) complain(error, refreshSessions);
  });
}
$('new').addEventListener('click', newSession);

// On a phone the list lies over the conversation, and keys and screen readers reach only the one in front.
const narrow = matchMedia('(max-width: 720px)');
/** @param {boolean} open */
function sidebar(open) {
  const over = narrow.matches && open;
  document.body.classList.toggle('sidebar-open', over);
  $('menu').setAttribute('aria-expanded', String(over));
  $('shade').hidden = !over;
  $('sidebar').inert = narrow.matches && !open;
  document.querySelector('main')?.toggleAttribute('inert', over);
  if (over) $('new').focus();
}
narrow.addEventListener('change', () => sidebar(false));
$('menu').addEventListener('click', () => sidebar(true));
$('shade').addEventListener('click', () => sidebar(false));
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && document.body.classList.contains('sidebar-open')) {
    sidebar(false);
    $('menu').focus();
  }
});

// ---- start ----

document.addEventListener('visibilitychange', () => {
  if (document.visibilityState !== 'visible') return;
  refreshSessions();
  catchUp().catch(() => {});
});
sidebar(false);
promptForToken(refreshCluster);
watchCluster();
refreshSessions();
if (current.key) openSession(current.key);
else newSession();
