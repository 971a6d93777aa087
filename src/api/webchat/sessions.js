// The list of conversations: newest first, with their first message as title.

import { json, memory, request } from './api.js';
import { element } from './markdown.js';

const CURRENT = 'openclaw.session';
const PAGE = 200;
/** The server lists by key, not by time: this many are looked at to find the newest. */
const MOST = 2000;
const SHOWN = 40;

/** @typedef {{sessionKey: string, updatedMs: number, headSeq: number, runningTurn?: string, queuedTurns: string[]}} Session */

/** @type {Map<string, string>} */
const titles = new Map();
/** @type {Session[]} */
let known = [];
let shown = SHOWN;

const list = /** @type {HTMLElement} */ (document.getElementById('sessions'));
const more = /** @type {HTMLElement} */ (document.getElementById('more-sessions'));
const none = /** @type {HTMLElement} */ (document.getElementById('no-sessions'));
const dialog = /** @type {HTMLDialogElement} */ (document.getElementById('delete-dialog'));

export const current = {
  get key() {
    return memory.get(CURRENT);
  },
  set key(key) {
    memory.set(CURRENT, key);
    mark();
  },
};

/** @param {string} key */
export const pathOf = (key) => `sessions/${encodeURIComponent(key)}`;

/** What to call a conversation. @param {string} key */
export function titleOf(key) {
  const title = titles.get(key);
  if (title) return title;
  if (/^agent:[^:]+:dashboard:/.test(key)) return 'New conversation';
  return key.replace(/^agent:main:/, '').replace(/^main$/, 'Main conversation');
}

/** @param {string} key @param {string} text its first message */
export function setTitle(key, text) {
  const line = text.trim().replace(/\s+/g, ' ');
  if (!titles.has(key) && line) titles.set(key, line.length > 60 ? `${line.slice(0, 59)}…` : line);
}

/**
 * Reads the list again and shows it.
 * @param {{open: (key: string) => void, deleted: (key: string) => void}} on
 */
export async function refresh(on) {
  /** @type {Session[]} */
  const found = [];
  let cursor = '';
  do {
    const page = await json(`sessions?limit=${PAGE}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    found.push(...page.sessions);
    cursor = page.nextCursor ?? '';
  } while (cursor && found.length < MOST);
  known = found.sort((a, b) => b.updatedMs - a.updatedMs);
  draw(on);
  more.onclick = () => {
    shown += SHOWN;
    draw(on);
    nameThem(on);
  };
  await nameThem(on);
}

/** Looks up the first message of those that have no title yet. @param {Parameters<typeof refresh>[0]} on */
async function nameThem(on) {
  const nameless = known.slice(0, shown).filter(({ sessionKey, headSeq }) => headSeq > 0 && !titles.has(sessionKey));
  if (nameless.length === 0) return;
  const worker = async () => {
    for (let session = nameless.pop(); session; session = nameless.pop()) {
      const { sessionKey } = session;
      const first = await json(`${pathOf(sessionKey)}/entries?after=0&limit=1`).catch(() => null);
      setTitle(sessionKey, first?.entries[0]?.text ?? '');
    }
  };
  await Promise.all([worker(), worker(), worker()]);
  draw(on);
}

/** @param {Parameters<typeof refresh>[0]} on */
function draw(on) {
  // Who is in the list by keyboard stays at the same place in it.
  const focused = document.activeElement?.closest('#sessions button');
  const place = focused && { key: focused.parentElement?.dataset.key, index: [...(focused.parentElement?.children ?? [])].indexOf(focused) };
  list.replaceChildren(
    ...known.slice(0, shown).map(({ sessionKey, updatedMs }) => {
      const title = titleOf(sessionKey);
      const open = element('button', { type: 'button', class: 'session', title }, element('span', {}, title), element('time', { datetime: new Date(updatedMs).toISOString() }, when(updatedMs)));
      open.addEventListener('click', () => on.open(sessionKey));
      const remove = element('button', { type: 'button', class: 'icon delete', 'aria-label': `Delete “${title}”`, title: 'Delete' }, '✕');
      remove.addEventListener('click', () => confirmDelete(sessionKey, on));
      return element('li', { 'data-key': sessionKey }, open, remove);
    }),
  );
  more.hidden = known.length <= shown;
  none.hidden = known.length > 0;
  mark();
  if (place) {
    const item = [...list.children].find((child) => child instanceof HTMLElement && child.dataset.key === place.key);
    const button = item?.children[place.index];
    if (button instanceof HTMLElement) button.focus({ preventScroll: true });
  }
}

function mark() {
  for (const item of list.children) {
    const isCurrent = item instanceof HTMLElement && item.dataset.key === current.key;
    if (isCurrent) item.firstElementChild?.setAttribute('aria-current', 'true');
    else item.firstElementChild?.removeAttribute('aria-current');
  }
}

/** @param {string} key @param {Parameters<typeof refresh>[0]} on */
function confirmDelete(key, on) {
  const name = document.getElementById('delete-name');
  if (name) name.textContent = `“${titleOf(key)}”`;
  dialog.returnValue = 'cancel';
  dialog.onclose = async () => {
    if (dialog.returnValue !== 'ok') return;
    await request(pathOf(key), { method: 'DELETE' }).then(
      () => on.deleted(key),
      (error) => (error.code === 'not_found' ? on.deleted(key) : dispatchEvent(new CustomEvent('failed', { detail: error }))),
    );
  };
  dialog.showModal();
}

/** Time for today, date for earlier. @param {number} ms */
export function when(ms) {
  const date = new Date(ms);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(undefined, today ? { hour: '2-digit', minute: '2-digit' } : { day: 'numeric', month: 'short' });
}
