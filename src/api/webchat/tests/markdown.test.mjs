import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parse, safeHref } from '../markdown.js';

/** The tree without what the element reuse needs, as short text. */
const inline = (nodes) =>
  nodes.map((node) => ({ text: node.text, code: `<c ${node.text}>`, link: node.href && `<a ${node.href} ${inline(node.children ?? [])}>` })[node.kind] ?? `<${node.kind} ${inline(node.children)}>`).join('');
const check = (text, expected) => assert.equal(inline(parse(text)[0].children), expected, text);

test('inline marks', () => {
  check('a **b** *c* `d` __e__ _f_', 'a <strong b> <em c> <c d> <strong e> <em f>');
  check('**bold with *italics* inside**', '<strong bold with <em italics> inside>');
  check('`` a`b ``', '<c a`b>');
  check('\\*not\\* a\\b', '*not* a\\b');
});

test('what only looks like a mark stays text', () => {
  for (const text of ['2 * 3 * 4', 'snake_case_name', '** open', 'a ` b', '[a] (b)', 'a*', '![', '[x](']) check(text, text);
});

test('links lead to http and https alone', () => {
  check('[a](https://x.example/?q=1)', '<a https://x.example/?q=1 a>');
  check('see http://x.example/a_b.', 'see <a http://x.example/a_b http://x.example/a_b>.');
  for (const address of ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', 'data:text/html,x', 'vbscript:x', 'file:///etc/passwd', '//x.example', '/api/v1/sessions', 'java\tscript:alert(1)', 'https:', 'http://', 'https://[']) {
    assert.equal(safeHref(address), null, address);
    const tree = JSON.stringify(parse(`[a](${address}) ![b](${address}) <${address}>`));
    assert.ok(!tree.includes('"link"'), `${address}: ${tree}`);
  }
});

test('an image is a link, and markup is text', () => {
  check('![pixel](https://t.example/p.png)', '<a https://t.example/p.png pixel>');
  check('<img src=x onerror=alert(1)>', '<img src=x onerror=alert(1)>');
});

test('blocks', () => {
  const text = '# Title\n\none\ntwo\n\n- a\n  more\n  - b\n1. c\n\n> q\n> r\n\n```js\nlet a = `**`;\n\n# no\n```\nend';
  const blocks = parse(text);
  assert.deepEqual(blocks.map((block) => block.kind), ['heading', 'paragraph', 'list', 'quote', 'code', 'paragraph']);
  assert.deepEqual(blocks[2].items.map(({ depth, number }) => [depth, number]), [[0, ''], [1, ''], [0, '1']]);
  assert.equal(blocks[4].language, 'js');
  assert.equal(blocks[4].text, 'let a = `**`;\n\n# no');
});

test('a fence still being streamed is code already', () => {
  assert.deepEqual(parse('```py\nprint(1)').map(({ kind, text }) => [kind, text]), [['code', 'print(1)']]);
  assert.deepEqual(parse('~~~\n```\n~~~').map(({ kind, text }) => [kind, text]), [['code', '```']]);
});

test('no text takes long', () => {
  const started = performance.now();
  for (const piece of ['*', '**a ', '_', '`', '``` ', '[', '![', '[a](', '[a](b', '\\', '> ', '- ', '  - x\n', 'https://)', 'http://a).', '#', '~~~', '\n', '*a_b`c[', '```' + 'a'.repeat(50) + '`']) {
    parse(piece.repeat(Math.ceil(100_000 / piece.length)));
  }
  const took = performance.now() - started;
  assert.ok(took < 5000, `${took} ms for 20 texts of 100 kB`);
});
