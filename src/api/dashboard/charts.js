// Small charts as SVG, drawn by hand: lines over time, and lanes of who did what when. Each is one image with a text that says
// what it shows; the figures themselves stand in a table beside it. Lines differ by dashes, lanes by patterns, as well as by colour.

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {(Node | string)[]} children
 */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Where the lines of an axis go: round numbers that reach the highest value. @param {number} highest */
export function steps(highest) {
  if (!(highest > 0)) return [0, 1];
  const magnitude = 10 ** Math.floor(Math.log10(highest / 3));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((size) => highest / size <= 4) ?? highest;
  const count = Math.ceil(highest / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(12)));
}

/** The powers of ten around the values. @param {number} lowest @param {number} highest */
export function decades(lowest, highest) {
  if (!(highest > 0)) return [1, 10, 100];
  const from = Math.floor(Math.log10(Math.max(lowest, 0.01)));
  const to = Math.max(Math.ceil(Math.log10(highest)), from + 1);
  return Array.from({ length: to - from + 1 }, (_, index) => 10 ** (from + index));
}

/**
 * Where the part begins that is worth a picture: with the first that is known, but with `least` values.
 * @param {(number | null)[][]} lines of the same length
 * @param {number} least
 */
export function begin(lines, least) {
  const length = lines[0].length;
  const known = lines.map((values) => values.findIndex((value) => value !== null)).filter((index) => index >= 0);
  return Math.max(Math.min(length - least, ...known), 0);
}

/**
 * A path through what is known: it is interrupted where nothing is, and a value alone is a dot.
 * @param {(number | null)[]} values
 * @param {(index: number) => number} x
 * @param {(value: number) => number} y
 */
export function path(values, x, y) {
  let drawn = '';
  values.forEach((value, index) => {
    if (value === null) return;
    const begins = index === 0 || values[index - 1] === null;
    const ends = index === values.length - 1 || values[index + 1] === null;
    drawn += `${begins ? 'M' : 'L'}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    if (begins && ends) drawn += 'h0.01';
  });
  return drawn;
}


/**
 * @param {Element} into
 * @param {{lines: {name: string, values: (number | null)[]}[], log?: boolean, label: (value: number) => string, summary: string, past: string}} chart
 */
export function lineChart(into, { lines, log = false, label, summary, past }) {
  const width = Math.max(into.clientWidth, 200);
  const height = 190;
  const [left, right, top, bottom] = [52, 10, 12, 24];
  const all = lines.flatMap((line) => line.values).filter((value) => value !== null && (!log || value > 0));
  const [lowest, highest] = [Math.min(...all), Math.max(...all)];
  const ticks = all.length === 0 ? (log ? [1, 10, 100] : [0, 1]) : log ? decades(lowest, highest) : steps(highest);
  const scale = log ? (/** @type {number} */ value) => Math.log10(Math.max(value, ticks[0])) : (/** @type {number} */ value) => value;
  const [low, high] = [scale(ticks[0]), scale(ticks[ticks.length - 1])];
  const y = (/** @type {number} */ value) => height - bottom - ((scale(value) - low) / (high - low)) * (height - top - bottom);
  const count = lines[0].values.length;
  const x = (/** @type {number} */ index) => left + (index / Math.max(count - 1, 1)) * (width - left - right);

  const image = svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': summary });
  for (const tick of ticks) {
    image.append(
      svg('line', { class: 'grid', x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg('text', { class: 'tick', x: left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, label(tick)),
    );
  }
  image.append(
    svg('text', { class: 'tick', x: left, y: height - 6 }, past),
    svg('text', { class: 'tick', x: width - right, y: height - 6, 'text-anchor': 'end' }, 'now'),
  );
  lines.forEach((line, index) => {
    const values = log ? line.values.map((value) => (value === 0 ? null : value)) : line.values;
    image.append(svg('path', { class: `line line-${index}`, d: path(values, x, y) }));
  });
  if (all.length === 0) {
    image.append(svg('text', { class: 'nothing', x: (left + width) / 2, y: height / 2, 'text-anchor': 'middle' }, 'nothing yet'));
  }
  into.replaceChildren(image);
}

/** How a line of a chart looks, beside its name. @param {number} index */
export function sample(index) {
  return svg('svg', { width: 28, height: 10, viewBox: '0 0 28 10', 'aria-hidden': 'true' }, svg('path', { class: `line line-${index}`, d: 'M1 5H27' }));
}

/** A line without axes, beside the figure that it leads to. @param {(number | null)[]} values */
export function spark(values) {
  const [width, height] = [84, 22];
  const highest = Math.max(...values.map((value) => value ?? 0), 0.001);
  const x = (/** @type {number} */ index) => 1 + (index / Math.max(values.length - 1, 1)) * (width - 2);
  const y = (/** @type {number} */ value) => height - 2 - (value / highest) * (height - 4);
  return svg('svg', { class: 'spark', width, height, viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true' }, svg('path', { class: 'line line-0', d: path(values, x, y) }));
}

/**
 * Who did what when.
 * @param {Element} into
 * @param {{from: number, to: number, lanes: {name: string, parts: {who: string, from: number, to: number}[]}[]}} time
 * @param {string[]} names of all instances, in order
 * @param {{summary: string, past: string}} texts
 */
export function lanes(into, time, names, { summary, past }) {
  const width = Math.max(into.clientWidth, 200);
  const row = 46;
  const height = time.lanes.length * row + 24;
  const x = (/** @type {number} */ ms) => ((ms - time.from) / (time.to - time.from)) * width;
  const image = svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': summary });
  image.append(
    svg('defs', {},
      svg('pattern', { id: 'hatch-1', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, svg('rect', { class: 'weave', width: 2.5, height: 8 })),
      svg('pattern', { id: 'hatch-2', width: 8, height: 8, patternUnits: 'userSpaceOnUse' }, svg('circle', { class: 'weave', cx: 4, cy: 4, r: 1.7 })),
      svg('pattern', { id: 'hatch-3', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(-45)' }, svg('rect', { class: 'weave', width: 1.2, height: 8 }), svg('rect', { class: 'weave', width: 8, height: 1.2 }))));
  time.lanes.forEach((lane, index) => {
    const top = index * row;
    image.append(svg('text', { class: 'lane', x: 0, y: top + 12 }, lane.name));
    for (const part of lane.parts) {
      const [left, wide] = [x(part.from), Math.max(x(part.to) - x(part.from), 1)];
      const box = { x: left, y: top + 18, width: wide, height: 22 };
      if (part.who === '') {
        // A moment without anybody is far narrower than a pixel, and still the one thing to be seen.
        image.append(svg('rect', { class: 'nobody', ...box, x: left - Math.max(3 - wide, 0), width: Math.max(wide, 3) }));
        continue;
      }
      const number = Math.max(names.indexOf(part.who), 0) % 4;
      image.append(svg('rect', { class: 'part', ...box }));
      if (number > 0) image.append(svg('rect', { class: 'woven', fill: `url(#hatch-${number})`, ...box }));
      const room = part.who.length * 7.5 + 16;
      if (wide > room) {
        image.append(
          svg('rect', { class: 'plate', x: left + 5, y: top + 21, width: room - 10, height: 16, rx: 4 }),
          svg('text', { class: 'who', x: left + 9, y: top + 33 }, part.who),
        );
      }
    }
  });
  image.append(
    svg('text', { class: 'tick', x: 0, y: height - 4 }, past),
    svg('text', { class: 'tick', x: width, y: height - 4, 'text-anchor': 'end' }, 'now'),
  );
  into.replaceChildren(image);
}
