// The cluster's state below the list of conversations, read every ten seconds while the page is visible.

import { json } from './api.js';
import { element } from './markdown.js';

const EVERY_MS = 10_000;

const members = /** @type {HTMLElement} */ (document.getElementById('members'));
const text = /** @type {HTMLElement} */ (document.getElementById('cluster-text'));

export function watchCluster() {
  const look = () => {
    if (document.visibilityState === 'visible') void refreshCluster();
  };
  setInterval(look, EVERY_MS);
  document.addEventListener('visibilitychange', look);
  look();
}

export async function refreshCluster() {
  const cluster = await json('cluster', { signal: AbortSignal.timeout(EVERY_MS), quiet: true }).catch(() => null);
  if (!cluster) {
    text.textContent = 'Cluster state unknown';
    members.replaceChildren();
    return;
  }
  const live = cluster.members.filter((/** @type {any} */ member) => member.live).length;
  members.replaceChildren(
    ...cluster.members.map((/** @type {any} */ member) => {
      const state = member.live ? (member.draining ? 'draining' : 'live') : 'down';
      const role = member.instanceId === cluster.leader ? 'leader' : member.role;
      return element('li', { class: state, title: `${member.instanceId}: ${role}, ${state}` }, member.instanceId, element('span', {}, state === 'live' ? role : state));
    }),
  );
  const leader = cluster.leader ? '' : ', no leader';
  text.textContent = `${live} of ${cluster.members.length} live${leader} · seen by ${cluster.instanceId}`;
}
