// Turns a model's text into a small set of elements: paragraphs, headings, lists, quotes, code, emphasis, links.
//
// The text is not trusted. `parse` is pure and gives a tree; `show` builds it with DOM calls that take text, never
// markup. Links lead to http and https alone, and images become links, because loading one would tell a stranger that
// (and what) the model was asked. Every scan is linear, so no text can hang the page.

/**
 * @typedef {{kind: 'text' | 'code', text: string}
 *   | {kind: 'strong' | 'em', children: Inline[]}
 *   | {kind: 'link', href: string, children: Inline[]}} Inline
 * @typedef {{kind: 'paragraph' | 'heading' | 'quote', children: Inline[], source: string}
 *   | {kind: 'code', language: string, text: string, source: string}
 *   | {kind: 'list', ordered: boolean, items: {depth: number, number: string, children: Inline[]}[], source: string}} Block
 */

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]{0,8}([\w+#.-]{0,40})[^`]*$/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])[ \t]+(.*)$/;
const HEADING = /^#{1,6}[ \t]+(.*)$/;
const SPECIAL = /[\\`*_]|!?\[|https?:\/\//g;
const LINK = /!?\[([^[\]\n]{1,1000})\]\(([^\s()<>]{1,2000}(?:\([^\s()<>]{0,200}\))?)\)/y;
const BARE_LINK = /https?:\/\/[^\s<>"'`]{1,2000}/y;

/**
 * The address if it may become a link, else null. Everything but http and https (javascript:, data:, file: ...) may not.
 * @param {string} text
 */
export function safeHref(text) {
  if (!/^https?:\/\//i.test(text) || !URL.canParse(text)) return null;
  return new URL(text).href;
}

/**
 * @param {string} text
 * @returns {Block[]}
 */
export function parse(text) {
  const lines = text.replaceAll('\r\n', '\n').split('\n');
  /** @type {Block[]} */
  const blocks = [];
  let at = 0;
  /** @param {(line: string) => boolean} belongs */
  const take = (belongs) => {
    const from = at;
    while (at < lines.length && belongs(lines[at])) at += 1;
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const from = at;
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === '') {
      at += 1;
    } else if (fence) {
      at += 1;
      const body = take((next) => !(next.trim().startsWith(fence[1]) && /^(`+|~+)$/.test(next.trim())));
      at += 1; // The closing fence; a fence still being streamed has none yet.
      blocks.push({ kind: 'code', language: fence[2], text: body.join('\n'), source: lines.slice(from, at).join('\n') });
    } else if (HEADING.test(line)) {
      at += 1;
      blocks.push({ kind: 'heading', children: inline(HEADING.exec(line)?.[1] ?? ''), source: line });
    } else if (line.startsWith('>')) {
      const body = take((next) => next.startsWith('>'));
      blocks.push({ kind: 'quote', children: inline(body.map((next) => next.replace(/^> ?/, '')).join('\n')), source: body.join('\n') });
    } else if (ITEM.test(line)) {
      const body = take((next) => ITEM.test(next) || (/^\s+\S/.test(next) && !FENCE.test(next)));
      blocks.push(list(body));
    } else {
      const body = take((next) => next.trim() !== '' && !FENCE.test(next) && !HEADING.test(next) && !ITEM.test(next) && !next.startsWith('>'));
      blocks.push({ kind: 'paragraph', children: inline(body.join('\n')), source: body.join('\n') });
    }
  }
  return blocks;
}

/**
 * @param {string[]} lines
 * @returns {Block}
 */
function list(lines) {
  /** @type {{depth: number, number: string, text: string}[]} */
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item) items.push({ depth: Math.min(3, Math.floor(item[1].length / 2)), number: item[2] ?? '', text: item[3] });
    else items[items.length - 1].text += `\n${line.trim()}`;
  }
  return {
    kind: 'list',
    ordered: items[0].number !== '',
    items: items.map(({ depth, number, text }) => ({ depth, number, children: inline(text) })),
    source: lines.join('\n'),
  };
}

/**
 * @param {string} text
 * @param {number} nesting how deep emphasis may still nest
 * @returns {Inline[]}
 */
function inline(text, nesting = 4) {
  /** @type {Inline[]} */
  const out = [];
  /** Marks that are known not to occur further on, so that each is looked for in vain once at most. */
  const missing = new Set();
  /** @param {string} mark @param {number} from */
  const find = (mark, from) => {
    if (missing.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) missing.add(mark);
    return found;
  };
  /** @param {string} plain */
  const add = (plain) => {
    const last = out.at(-1);
    if (last?.kind === 'text') last.text += plain;
    else if (plain !== '') out.push({ kind: 'text', text: plain });
  };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    if (!special) break;
    add(text.slice(at, special.index));
    at = special.index;
    const next = mark(special[0]);
    if (next === at) {
      add(special[0]);
      at += special[0].length;
    } else {
      at = next;
    }
  }
  add(text.slice(at));
  return out;

  /**
   * Reads what begins at `at`, and says where it ends; there itself when it is plain text after all.
   * @param {string} special
   */
  function mark(special) {
    if (special === '\\') {
      if (!/[!-/:-@[-`{-~]/.test(text[at + 1] ?? '')) return at;
      add(text[at + 1]);
      return at + 2;
    }
    if (special === '`') {
      const ticks = /`+/y;
      ticks.lastIndex = at;
      const open = ticks.exec(text)?.[0] ?? special;
      const close = find(open, at + open.length);
      if (close < 0) {
        add(open);
        return at + open.length;
      }
      out.push({ kind: 'code', text: text.slice(at + open.length, close).replace(/^ (.*) $/s, '$1') });
      return close + open.length;
    }
    if (special.startsWith('http')) {
      BARE_LINK.lastIndex = at;
      let address = BARE_LINK.exec(text)?.[0] ?? '';
      while ('.,;:!?)]*_'.includes(address.at(-1) ?? ' ')) address = address.slice(0, -1);
      const href = safeHref(address);
      if (!href) return at;
      out.push({ kind: 'link', href, children: [{ kind: 'text', text: address }] });
      return at + address.length;
    }
    if (special.endsWith('[')) {
      LINK.lastIndex = at;
      const link = LINK.exec(text);
      const href = link && safeHref(link[2]);
      if (!link || !href) return at;
      out.push({ kind: 'link', href, children: nesting > 0 ? inline(link[1], 0) : [{ kind: 'text', text: link[1] }] });
      return at + link[0].length;
    }
    // Emphasis. An underscore inside a word, as in snake_case, is a letter.
    const twice = text[at + 1] === special ? special + special : special;
    const inside = at + twice.length;
    if (nesting === 0 || /\s/.test(text[inside] ?? ' ') || (special === '_' && /\w/.test(text[at - 1] ?? ''))) return at;
    const close = find(twice, inside + 1);
    if (close < 0 || /\s/.test(text[close - 1]) || (special === '_' && /\w/.test(text[close + twice.length] ?? ''))) {
      add(twice);
      return inside;
    }
    out.push({ kind: twice.length === 2 ? 'strong' : 'em', children: inline(text.slice(inside, close), nesting - 1) });
    return close + twice.length;
  }
}

/** @type {WeakMap<Element, string>} */
const shown = new WeakMap();

/**
 * Makes `into` show `text`. Blocks that did not change keep their elements, so that streaming costs little and a
 * reader's selection stays.
 * @param {Element} into
 * @param {string} text
 */
export function show(into, text) {
  const blocks = parse(text);
  blocks.forEach((block, index) => {
    const old = into.children[index];
    if (old && shown.get(old) === block.source) return;
    const fresh = build(block);
    shown.set(fresh, block.source);
    if (old) old.replaceWith(fresh);
    else into.append(fresh);
  });
  while (into.children.length > blocks.length) into.lastElementChild?.remove();
}

/**
 * An element from text and elements; never from markup.
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** @param {Block} block */
function build(block) {
  switch (block.kind) {
    case 'code':
      return codeBlock(block);
    case 'list':
      // One flat list, indented by class: numbered items carry their own number, so those without do not count.
      return element(block.ordered ? 'ol' : 'ul', {}, ...block.items.map(({ depth, number, children }) =>
        element('li', number ? { class: `numbered depth-${depth}`, value: number } : { class: `depth-${depth}` }, ...children.map(buildInline))));
    case 'heading':
      return element('h3', {}, ...block.children.map(buildInline));
    case 'quote':
      return element('blockquote', {}, ...block.children.map(buildInline));
    default:
      return element('p', {}, ...block.children.map(buildInline));
  }
}

/** @param {{language: string, text: string}} block */
function codeBlock({ language, text }) {
  const code = element('code', {}, text);
  const copy = element('button', { type: 'button', class: 'copy' }, 'Copy');
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = 'Copied';
    } catch {
      // Outside a secure context there is no clipboard: select the code, so that one key copies it.
      getSelection()?.selectAllChildren(code);
      copy.textContent = 'Selected';
    }
    setTimeout(() => (copy.textContent = 'Copy'), 2000);
  });
  // A long line scrolls inside the block, which must then be reachable by keyboard.
  const scroller = element('pre', { tabindex: '0', 'aria-label': language ? `Code in ${language}` : 'Code' }, code);
  return element('div', { class: 'code' }, element('div', { class: 'code-head' }, element('span', {}, language || 'code'), copy), scroller);
}

/**
 * @param {Inline} node
 * @returns {Node}
 */
function buildInline(node) {
  switch (node.kind) {
    case 'text':
      return document.createTextNode(node.text);
    case 'code':
      return element('code', {}, node.text);
    case 'link':
      // The title shows where it leads, whatever its text claims.
      return element('a', { href: node.href, title: node.href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...node.children.map(buildInline));
    default:
      return element(node.kind, {}, ...node.children.map(buildInline));
  }
}
