/** The built component in a DOM without a browser. tests/browser has it in Chromium, against the real server. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test, { afterEach, beforeEach } from "node:test";
import { gzipSync } from "node:zlib";
import { Window } from "happy-dom";

const window = new Window({ url: "https://app.example/page" });
const names = ["HTMLElement", "CustomEvent", "customElements", "document", "CSSStyleSheet"];
for (const name of names) globalThis[name] = window[name];
Object.defineProperty(globalThis, "navigator", { value: { language: "en-GB" }, configurable: true });

const bundle = new URL("../dist/plaudit-thumbs.js", import.meta.url);
await import(bundle.href);

let sent, replies, waits;

function reply(status, { next = null, code = null } = {}) {
  const headers = next ? { "x-feedback-token": next } : {};
  return new Response(JSON.stringify(status < 400 ? {} : { error: { code, message: "<b>server's words</b>" } }), { status, headers });
}

beforeEach(() => {
  sent = [];
  replies = [reply(201, { next: "ft1_second" })];
  waits = [];
  globalThis.fetch = async (url, init) => {
    sent.push({ url, ...init, body: JSON.parse(init.body) });
    const answer = replies.length > 1 ? replies.shift() : replies[0];
    await waits.shift();
    if (answer instanceof Error) throw answer;
    return answer.clone();
  };
});

afterEach(() => document.body.replaceChildren());

function mount(attributes = {}) {
  const made = document.createElement("plaudit-thumbs");
  const given = { "response-id": "chatcmpl-1", token: "ft1_first", "base-url": "https://plaudit.example/", ...attributes };
  for (const [name, value] of Object.entries(given)) if (value !== null) made.setAttribute(name, value);
  document.body.append(made);
  const part = (name) => made.shadowRoot.querySelector(`[part~="${name}"]`);
  const parts = (name) => [...made.shadowRoot.querySelectorAll(`[part~="${name}"]`)];
  return { made, part, parts, said: () => part("status").textContent };
}

async function until(condition) {
  for (let k = 0; k < 500; k += 1) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`never: ${condition}`);
}

test("it is at most 10 kB gzipped", () => {
  assert.ok(gzipSync(readFileSync(bundle), { level: 9 }).length <= 10_000);
});

test("a click votes under the token and nothing else, and says so", async () => {
  const { made, part, said } = mount();
  const heard = [];
  document.body.addEventListener("plaudit-vote", ({ detail }) => heard.push(detail), { once: true });
  part("up").click();
  assert.equal(part("up").getAttribute("aria-pressed"), "true");
  await until(() => said().startsWith("Thank you"));
  assert.equal(sent[0].url, "https://plaudit.example/v1/feedback/t/ft1_first");
  assert.deepEqual(sent[0].body, { response_id: "chatcmpl-1", value: "up" });
  assert.equal(sent[0].credentials, "omit");
  assert.deepEqual(Object.keys(sent[0].headers).sort(), ["content-type", "idempotency-key"]);
  assert.equal(made.value, "up");
  assert.deepEqual(heard, [{ responseId: "chatcmpl-1", value: "up", nextToken: "ft1_second" }]);
});

test("a page that writes the next token back does not undo the vote", async () => {
  const { made, part, said } = mount();
  part("up").click();
  await until(() => said().startsWith("Thank you"));
  made.setAttribute("token", "ft1_second");
  assert.equal(made.value, "up");
});

test("a page that changes the look keeps the vote and the next token", async () => {
  const { made, part, parts, said } = mount();
  part("up").click();
  await until(() => said().startsWith("Thank you"));
  made.setAttribute("reasons-up", "kind=Kind");
  assert.deepEqual(parts("reason").map(({ textContent }) => textContent), ["Kind"]);
  made.setAttribute("lang", "zh");
  assert.equal(part("up").getAttribute("aria-label"), "好的回答");
  assert.equal(part("up").getAttribute("aria-pressed"), "true");
  assert.equal(made.value, "up");
  part("up").click();
  await until(() => sent.length === 2);
  assert.equal(sent[1].url.split("/").at(-1), "ft1_second");
  assert.equal(sent[1].body.value, null);
});

test("reasons and a comment follow under the next token; the vote is repeated, since the second word replaces the first", async () => {
  const { part, parts, said } = mount();
  part("down").click();
  await until(() => said().startsWith("Thank you"));
  parts("reason").find(({ value }) => value === "too-long").click();
  part("comment").value = "  <script>alert(1)</script>  ";
  part("send").click();
  await until(() => sent.length === 2);
  assert.equal(sent[1].url.split("/").at(-1), "ft1_second");
  assert.deepEqual(sent[1].body, { response_id: "chatcmpl-1", value: "down", tags: ["too-long"], comment: "<script>alert(1)</script>" });
  assert.ok(part("panel").hidden);
});

test("pressing the pressed thumb takes the vote back", async () => {
  const { made, part, said } = mount({ value: "up" });
  part("up").click();
  await until(() => said() === "Your vote is taken back.");
  assert.equal(sent[0].body.value, null);
  assert.equal(made.value, null);
  assert.ok(part("panel").hidden);
});

test("quick changes of mind go one after the other, and the last one stands", async () => {
  let go;
  waits = [new Promise((resolve) => (go = resolve))];
  const { part, said } = mount();
  part("up").click();
  part("down").click();
  part("up").click();
  part("down").click();
  assert.equal(sent.length, 1);
  go();
  await until(() => sent.length === 2 && said().startsWith("Thank you"));
  assert.deepEqual(sent.map(({ body }) => body.value), ["up", "down"]);
  assert.equal(part("down").getAttribute("aria-pressed"), "true");
});

test("a refusal is said in our words, and the thumb shows what the server has", async () => {
  for (const [status, words] of [[401, /too late/], [403, /cannot be rated/], [409, /rated already/], [410, /no longer/], [429, /slower/], [422, /did not work/]]) {
    replies = [reply(status)];
    const { part, said } = mount();
    part("up").click();
    await until(() => words.test(said()));
    assert.equal(part("up").getAttribute("aria-pressed"), "false");
    assert.ok(part("panel").hidden);
    document.body.replaceChildren();
  }
  assert.equal(sent.length, 6);
});

test("a lost answer is asked for again under the same idempotency key", async () => {
  replies = [new TypeError("lost"), reply(503), reply(200)];
  const { part, said } = mount();
  part("up").click();
  await until(() => said().startsWith("Thank you"));
  assert.equal(sent.length, 3);
  assert.equal(new Set(sent.map(({ headers }) => headers["idempotency-key"])).size, 1);
});

test("hostile attributes are text, and a hostile address is not called", async () => {
  const hostile = "<img src=x onerror=alert(1)>";
  const { made, parts, part } = mount({ "reasons-up": `evil=${hostile}\u202e, __proto__, constructor` });
  part("up").click();
  assert.deepEqual(parts("reason").map(({ textContent }) => textContent), [`${hostile}\u202e`, "__proto__", "constructor"]);
  assert.equal(made.shadowRoot.querySelector("img, script"), null);
  await until(() => sent.length === 1);
  for (const base of ["javascript:alert(1)//", "data:text/html,x", "http://"]) {
    document.body.replaceChildren();
    const { part: other, said } = mount({ "base-url": base });
    other("up").click();
    await until(() => /cannot be rated/.test(said()));
  }
  assert.equal(sent.length, 1);
});

test("a token stays one segment of the path", async () => {
  const { part } = mount({ token: "../../keys?x" });
  part("up").click();
  await until(() => sent.length === 1);
  assert.equal(sent[0].url, "https://plaudit.example/v1/feedback/t/..%2F..%2Fkeys%3Fx");
});

test("it speaks Chinese where the page does, and reasons keep their ids", () => {
  document.body.setAttribute("lang", "zh-CN");
  const { part, parts } = mount({ "reasons-down": "wrong, rude=没礼貌" });
  document.body.removeAttribute("lang");
  assert.equal(part("down").getAttribute("aria-label"), "不好的回答");
  part("down").click();
  assert.deepEqual(parts("reason").map(({ value, textContent }) => [value, textContent]), [["wrong", "有错误"], ["rude", "没礼貌"]]);
});

test("names, states and a live region are there for screen readers; Escape closes", () => {
  const { part, parts, made } = mount();
  assert.equal(part("group").getAttribute("role"), "group");
  assert.equal(part("status").getAttribute("role"), "status");
  part("up").click();
  for (const each of made.shadowRoot.querySelectorAll("button, textarea")) {
    assert.ok(each.getAttribute("aria-label") || each.textContent.trim(), each.outerHTML);
  }
  assert.ok(parts("reason").every((chip) => chip.getAttribute("aria-pressed") === "false"));
  part("panel").dispatchEvent(new window.KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  assert.ok(part("panel").hidden);
  assert.equal(made.shadowRoot.activeElement, part("up"));
});

test("without reasons and comment there is no panel", () => {
  const { part } = mount({ "reasons-up": "none", comment: "none" });
  part("up").click();
  assert.ok(part("panel").hidden);
});

test("another answer's attributes begin anew, and a late reply is not taken for its own", async () => {
  let go;
  waits = [new Promise((resolve) => (go = resolve))];
  const { made, part } = mount();
  part("up").click();
  made.setAttribute("response-id", "chatcmpl-2");
  made.setAttribute("token", "ft1_other");
  assert.equal(made.value, null);
  go();
  await new Promise((resolve) => setTimeout(resolve, 30));
  part("down").click();
  await until(() => sent.length === 2);
  assert.equal(sent[1].url.split("/").at(-1), "ft1_other");
  assert.deepEqual(sent[1].body, { response_id: "chatcmpl-2", value: "down" });
});
