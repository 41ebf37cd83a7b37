/** Server-sent events, decoded from bytes as they come (https://html.spec.whatwg.org/multipage/server-sent-events.html). */

const MAX_EVENT_CHARS = 16 * 1024 * 1024;

/**
 * Feed it bytes, cut anywhere; it gives the `data` of each complete event. Comments and the fields `event`, `id` and
 * `retry` are passed over; what is unfinished at the end is dropped, as the standard asks.
 */
export class SSEDecoder {
  readonly #decoder = new TextDecoder();
  #rest = "";
  #afterCR = false;
  #data: string[] = [];
  #held = 0;

  /** The events completed by these bytes. A RangeError where one event outgrows 16 Mi characters. */
  feed(bytes: Uint8Array): string[] {
    const events: string[] = [];
    for (const line of this.#lines(this.#decoder.decode(bytes, { stream: true }))) {
      if (line !== "") this.#field(line);
      else {
        if (this.#data.length > 0) events.push(this.#data.join("\n"));
        this.#data = [];
        this.#held = 0;
      }
    }
    return events;
  }

  #field(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    if (name !== "data") return;
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    this.#data.push(value);
    this.#held += value.length;
    this.#check(this.#held);
  }

  // A "\r" ends a line at once, so that nothing waits for the next byte; a "\n" right behind it belongs to it.
  #lines(text: string): string[] {
    if (this.#afterCR && text !== "") {
      if (text.startsWith("\n")) text = text.slice(1);
      this.#afterCR = false;
    }
    if (text.endsWith("\r")) this.#afterCR = true;
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() ?? "";
    this.#check(this.#rest.length);
    return lines;
  }

  #check(chars: number): void {
    if (chars > MAX_EVENT_CHARS) throw new RangeError("one event is longer than 16 Mi characters: this is no event stream");
  }
}
