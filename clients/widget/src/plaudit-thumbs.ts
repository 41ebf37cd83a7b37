/**
 * `<plaudit-thumbs response-id="chatcmpl-…" token="ft1_…" base-url="https://plaudit.example">`
 *
 * A vote is sent at the click; reasons and comment refine it. Pressing the pressed thumb takes the vote back. Whatever
 * comes from outside (attributes, the server) is shown as text only, and the server's own words not at all.
 */
import { sendVote, type Said, type Thumb } from "./send.js";
import { styleSheet } from "./style.js";
import { REASONS, refusalWords, wordsFor, type Words } from "./words.js";

type Attributes = Record<string, string>;

function element<K extends keyof HTMLElementTagNameMap>(name: K, attributes: Attributes, ...children: (Node | string)[]) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const button = (part: string, label: string, ...children: (Node | string)[]): HTMLButtonElement =>
  element("button", { type: "button", part, "aria-pressed": "false", ...(label ? { "aria-label": label } : {}) }, ...children);

function icon(thumb: "up" | "down"): SVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M7 22V11l5-9c1.7 0 3 1.3 3 3v4h5a2 2 0 0 1 2 2.3l-1.4 8a2 2 0 0 1-2 1.7zM2 11h3v11H2z");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  if (thumb === "down") svg.classList.add("down");
  svg.append(path);
  return svg;
}

/** Attributes that make it another answer; the others are its look. */
const ANSWER = ["response-id", "token", "value"];

export class PlauditThumbs extends HTMLElement {
  static readonly observedAttributes = [...ANSWER, "lang", "reasons-up", "reasons-down", "comment"];

  readonly #root = this.attachShadow({ mode: "open" });
  #words: Words = wordsFor("en");
  #token = "";
  /** What the server has. */
  #kept: Said = { value: null };
  /** What the person sees, and the server is to have. */
  #wanted: Said = { value: null };
  #sending = false;
  #thumbs!: Record<"up" | "down", HTMLButtonElement>;
  #panel!: HTMLFieldSetElement;
  #status!: HTMLElement;

  /** `"up"`, `"down"` or null: what is shown as pressed. */
  get value(): Thumb {
    return this.#wanted.value;
  }

  connectedCallback(): void {
    this.#begin();
  }

  attributeChangedCallback(name: string, before: string | null, now: string | null): void {
    if (name === "token" && now === this.#token) return; // the page keeps the next token, which is in use already
    const drawn = this.#root.childElementCount > 0; // an element from the page's HTML gets its attributes first
    if (!drawn || !this.isConnected || before === now) return;
    if (ANSWER.includes(name)) this.#begin();
    else this.#restyle();
  }

  /** Another look of the same answer: what was voted, and the token that comes next, stay. */
  #restyle(): void {
    const asking = !this.#panel.hidden;
    this.#render();
    if (asking) this.#fillPanel();
  }

  /** Another answer, or the first: all begins anew. */
  #begin(): void {
    const value = this.getAttribute("value");
    const shown: Thumb = value === "up" || value === "down" ? value : null;
    this.#token = this.getAttribute("token") ?? "";
    this.#kept = { value: shown };
    this.#wanted = { value: shown };
    this.#render();
  }

  #language(): string {
    return this.closest("[lang]")?.getAttribute("lang") || navigator.language || "en";
  }

  #render(): void {
    const words = wordsFor(this.#language());
    this.#words = words;
    this.#thumbs = {
      up: button("thumb up", words.up, icon("up")),
      down: button("thumb down", words.down, icon("down")),
    };
    for (const thumb of ["up", "down"] as const) this.#thumbs[thumb].addEventListener("click", () => this.#press(thumb));
    this.#panel = element("fieldset", { part: "panel", hidden: "" });
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#close();
    });
    this.#status = element("span", { part: "status", role: "status", "aria-live": "polite" });
    const group = element("div", { part: "group", role: "group", "aria-label": words.group }, this.#thumbs.up, this.#thumbs.down, this.#status);
    this.#root.replaceChildren(group, this.#panel);
    this.#root.adoptedStyleSheets = [styleSheet()];
    this.#show();
  }

  #show(): void {
    for (const thumb of ["up", "down"] as const) {
      const pressed = this.#wanted.value === thumb;
      this.#thumbs[thumb].setAttribute("aria-pressed", String(pressed));
      this.#thumbs[thumb].setAttribute("part", `thumb ${thumb}${pressed ? " pressed" : ""}`);
    }
  }

  #press(thumb: "up" | "down"): void {
    this.#wanted = { value: this.#wanted.value === thumb ? null : thumb };
    this.#show();
    this.#fillPanel();
    void this.#drain();
  }

  /** The questions that go with the vote; none where the page wants none. */
  #fillPanel(): void {
    const thumb = this.#wanted.value;
    const reasons = thumb ? this.#reasons(thumb) : [];
    const wantsComment = thumb !== null && this.getAttribute("comment") !== "none";
    this.#panel.hidden = reasons.length === 0 && !wantsComment;
    if (this.#panel.hidden) return;
    const words = this.#words;
    const chips = reasons.map(([id, label]) => this.#chip(id, label));
    const area = element("textarea", { part: "comment", rows: "2", maxlength: "2000", dir: "auto", "aria-label": words.comment, placeholder: words.comment });
    const send = button("send", "", words.send);
    const close = button("close", "", words.close);
    for (const plain of [send, close]) plain.removeAttribute("aria-pressed");
    send.addEventListener("click", () => this.#refine(chips, area.value));
    close.addEventListener("click", () => this.#close());
    const legend = element("legend", { part: "legend" }, words.why);
    this.#panel.replaceChildren(legend, ...chips, ...(wantsComment ? [area] : []), element("div", { part: "actions" }, send, close));
  }

  #chip(id: string, label: string): HTMLButtonElement {
    const chip = button("reason", "", element("bdi", {}, label));
    chip.value = id;
    chip.addEventListener("click", () => {
      const pressed = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(pressed));
      chip.setAttribute("part", pressed ? "reason pressed" : "reason");
    });
    return chip;
  }

  /** `reasons-down="wrong, rude=Not polite"`: known ids have words in both languages; `none` asks for no reasons. */
  #reasons(thumb: "up" | "down"): [string, string][] {
    const given = this.getAttribute(`reasons-${thumb}`);
    if (given === null) return REASONS[thumb].map((id) => [id, this.#words.reasons[id] ?? id]);
    const items = given === "none" ? [] : given.split(",").map((item) => item.trim()).filter(Boolean);
    return items.slice(0, 16).map((item) => {
      const sign = item.indexOf("=");
      const id = (sign < 0 ? item : item.slice(0, sign)).trim();
      const label = sign < 0 ? undefined : item.slice(sign + 1).trim();
      const known = Object.hasOwn(this.#words.reasons, id) ? this.#words.reasons[id] : id;
      return [id.slice(0, 128), label || known || id];
    });
  }

  #refine(chips: HTMLButtonElement[], comment: string): void {
    const tags = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.value);
    const words: Pick<Said, "tags" | "comment"> = {};
    if (tags.length > 0) words.tags = tags;
    if (comment.trim() !== "") words.comment = comment.trim();
    this.#wanted = { value: this.#wanted.value, ...words };
    this.#close();
    void this.#drain();
  }

  #close(): void {
    const { value } = this.#wanted;
    this.#panel.hidden = true;
    this.#thumbs[value ?? "up"].focus(); // where the person was before the panel opened
  }

  /** One request at a time, until the server has what the person wants. */
  async #drain(): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    try {
      while (!same(this.#wanted, this.#kept)) if (!(await this.#sendOnce())) break;
    } finally {
      this.#sending = false;
    }
  }

  async #sendOnce(): Promise<boolean> {
    const token = this.#token;
    const begunFor = this.getAttribute("token");
    const said = this.#wanted;
    this.#say(this.#words.sending);
    const responseId = this.getAttribute("response-id");
    const base = this.#base();
    const outcome = base === undefined || token === ""
      ? ({ ok: false, status: 403 } as const)
      : await sendVote(base, token, responseId ? { response_id: responseId, ...said } : said);
    if (this.getAttribute("token") !== begunFor) return true; // another answer meanwhile
    if (!outcome.ok) {
      this.#refused(outcome.status);
      return false;
    }
    this.#token = outcome.next ?? token;
    this.#kept = said;
    this.#say(said.value === null ? this.#words.retracted : said.tags || said.comment ? this.#words.sent : this.#words.thanks);
    this.#tell("plaudit-vote", { responseId, ...said, nextToken: outcome.next });
    return true;
  }

  #refused(status: number): void {
    this.#wanted = this.#kept;
    this.#panel.hidden = true;
    this.#show();
    this.#say(refusalWords(this.#words, status));
    this.#tell("plaudit-error", { responseId: this.getAttribute("response-id"), status });
  }

  /** The server's address; undefined where the attribute is none. */
  #base(): string | undefined {
    const given = this.getAttribute("base-url") ?? "";
    if (!URL.canParse(given, document.baseURI)) return undefined;
    const url = new URL(given, document.baseURI);
    if (!/^https?:$/.test(url.protocol)) return undefined;
    return given === "" ? url.origin : (url.origin + url.pathname).replace(/\/+$/, "");
  }

  #say(words: string): void {
    this.#status.textContent = words;
  }

  #tell(name: string, detail: object): void {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

function same(a: Said, b: Said): boolean {
  return a.value === b.value && a.comment === b.comment && String(a.tags ?? "") === String(b.tags ?? "");
}

if (!customElements.get("plaudit-thumbs")) customElements.define("plaudit-thumbs", PlauditThumbs);
