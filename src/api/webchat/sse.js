// Reads the event stream of an answer: bytes as the network cuts them in, whole events out.
//
// EventSource cannot send a POST or an Authorization header, so the page reads the stream itself.
// Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".

/**
 * @typedef {object} SseEvent
 * @property {string} event its name; "message" when the stream gave none
 * @property {string} data
 * @property {string} id the last id the stream gave, which may be an earlier event's
 */

/** The longest event that is accepted, in characters: a reply is far shorter, and memory stays bounded. */
export const MAX_EVENT = 4 * 1024 * 1024;

export class SseParser {
  #decoder = new TextDecoder();
  #rest = '';
  #event = '';
  /** @type {string[]} */
  #data = [];
  #size = 0;
  #id = '';

  /**
   * Takes the next bytes and gives the events they complete. An event that the stream's end cuts short is never given.
   * @param {Uint8Array} bytes
   * @returns {SseEvent[]}
   */
  push(bytes) {
    /** @type {SseEvent[]} */
    const events = [];
    const text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    let from = 0;
    for (const match of text.matchAll(/\r\n|\n|\r/g)) {
      // A carriage return at the very end may be half of a line end whose other half is still to come.
      if (match[0] === '\r' && match.index + 1 === text.length) break;
      this.#line(text.slice(from, match.index), events);
      from = match.index + match[0].length;
    }
    this.#rest = text.slice(from);
    if (this.#rest.length + this.#size > MAX_EVENT) throw new RangeError('the stream sent an event that is too long');
    return events;
  }

  /**
   * @param {string} line
   * @param {SseEvent[]} events
   */
  #line(line, events) {
    if (line === '') {
      if (this.#data.length > 0) {
        events.push({ event: this.#event || 'message', data: this.#data.join('\n'), id: this.#id });
      }
      this.#event = '';
      this.#data = [];
      this.#size = 0;
      return;
    }
    const colon = line.indexOf(':');
    if (colon === 0) return; // A comment: the server's keep-alive.
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
    if (field === 'event') this.#event = value;
    else if (field === 'id' && !value.includes('\0')) this.#id = value;
    else if (field === 'data') {
      this.#data.push(value);
      this.#size += value.length;
    }
  }
}
