// The prompt for the gateway's access token, on any page.

import { onTokenNeeded } from './api.js';
import { element } from './markdown.js';

/** @param {() => void} closed called after each answer */
export function promptForToken(closed) {
  const wrong = element('p', { id: 'token-wrong', class: 'error', role: 'alert', hidden: '' }, 'That token was not accepted.');
  const field = /** @type {HTMLInputElement} */ (
    element('input', { id: 'token', type: 'password', required: '', autocomplete: 'off', spellcheck: 'false' })
  );
  const later = element('button', { id: 'token-later', type: 'button' }, 'Not now');
  const dialog = /** @type {HTMLDialogElement} */ (
    element('dialog', { id: 'token-dialog', 'aria-labelledby': 'token-title' },
      element('form', { method: 'dialog' },
        element('h2', { id: 'token-title' }, 'Access token'),
        element('p', {}, 'This gateway is protected. The token is the ', element('code', {}, 'gateway.auth.token'), ' of its configuration; it is kept until you close this tab.'),
        element('label', { for: 'token' }, 'Token'),
        field,
        wrong,
        element('div', { class: 'actions' }, later, element('button', { value: 'ok', type: 'submit', class: 'primary' }, 'Continue'))))
  );
  document.body.append(dialog);
  later.addEventListener('click', () => dialog.close());

  let asked = false;
  onTokenNeeded(
    () =>
      new Promise((resolve) => {
        wrong.hidden = !asked;
        field.value = '';
        dialog.returnValue = 'cancel';
        dialog.onclose = () => {
          const typed = dialog.returnValue === 'ok' ? field.value.trim() : '';
          asked = typed !== '';
          field.value = '';
          resolve(typed || null);
          setTimeout(closed);
        };
        dialog.showModal();
        field.focus();
      }),
  );
}
