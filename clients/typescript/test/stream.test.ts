import assert from "node:assert/strict";
import test from "node:test";
import * as plaudit from "../src/index.js";
import { SSEDecoder } from "../src/sse.js";
import { chunk, ID, json, scripted, streamed } from "./support.js";

const EVENTS = [chunk("你"), chunk("好 👍"), chunk(null, "stop")];

test("pieces cut anywhere, inside of characters too, give the same answer", async () => {
  for (const size of [1, 2, 3, 5, 64, 10_000]) {
    const { client, sent } = scripted([() => streamed(EVENTS, { size })]);
    const stream = await client.chat.stream({ messages: "Hi.", train: true, session: "s-1" });
    const texts = [];
    for await (const { text } of stream) texts.push(text);
    assert.deepEqual(texts, ["你", "好 👍", ""]);
    assert.deepEqual([stream.text, stream.responseId, stream.version], ["你好 👍", ID, "v3"]);
    assert.deepEqual([stream.finishReason, stream.feedbackToken], ["stop", "ft1_x"]);
    assert.deepEqual(sent[0]!.body, { train: true, messages: [{ role: "user", content: "Hi." }], stream: true });
    assert.equal(sent[0]!.headers.get("x-session-id"), "s-1");
    assert.equal(sent[0]!.headers.get("idempotency-key"), null);
  }
});

test("line ends of all kinds, comments and other fields", () => {
  const decoder = new SSEDecoder();
  const text = "\ufeff: hello\r\nevent: x\r\ndata: a\r\ndata:b\r\n\r\nid: 1\rdata: c\r\rdata\n\n";
  const events = [];
  for (const byte of new TextEncoder().encode(text)) events.push(...decoder.feed(new Uint8Array([byte])));
  assert.deepEqual(events, ["a\nb", "c", ""]);
});

test("an event without end is refused before it fills the memory", () => {
  const decoder = new SSEDecoder();
  const piece = new Uint8Array(1 << 20).fill(97);
  assert.throws(() => {
    for (let k = 0; k < 20; k += 1) decoder.feed(piece);
  }, RangeError);
});

test("an error inside the stream is thrown as its class, after what came before it", async () => {
  const error = { error: { message: "broke down", type: "engine_error", param: null, code: null } };
  const { client } = scripted([() => streamed([chunk("half"), error])]);
  const stream = await client.chat.stream({ messages: "Hi." });
  await assert.rejects(stream.read(), plaudit.EngineError);
  assert.equal(stream.text, "half");
});

test("an answer that breaks off is an error, not a short answer", async () => {
  const { client } = scripted([() => streamed([chunk("half")], { done: false })]);
  await assert.rejects((await client.chat.stream({ messages: "Hi." })).read(), /broke off after 4 characters/);
});

test("leaving the loop closes the connection", async () => {
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(chunk("a"))}\n\n`)),
    cancel: () => void (cancelled = true),
  });
  const { client } = scripted([() => new Response(body, { headers: { "content-type": "text/event-stream" } })]);
  for await (const _ of await client.chat.stream({ messages: "Hi." })) break;
  assert.ok(cancelled);
});

test("silence in a stream ends it", async () => {
  const hanging = (): Promise<Response> =>
    Promise.resolve(new Response(new ReadableStream(), { headers: { "content-type": "text/event-stream" } }));
  const { client } = scripted([hanging]);
  const stream = await client.chat.stream({ messages: "Hi." }, { timeoutMs: 20 });
  // A body made by hand does not hear fetch's signal, so the end is seen by reading on.
  await assert.rejects(Promise.race([stream.read(), new Promise((_, no) => setTimeout(() => no(new Error("still open")), 2000))]), plaudit.TimeoutError);
});

test("something else than a stream is refused", async () => {
  const { client } = scripted([json({})]);
  await assert.rejects(client.chat.stream({ messages: "Hi." }), plaudit.ResponseError);
});

test("a whole answer tells who spoke and what to rate, for each choice", async () => {
  const choices = [0, 1].map((index) => ({ index, message: { role: "assistant", content: `${index}` }, finish_reason: "stop" }));
  const { client } = scripted([json({ id: ID, model: "policy@v2", created: 1, choices }, 200, { "x-rollout-arm": "canary" })]);
  const answer = await client.chat.create({ messages: "Hi.", n: 2, top_k: 20 });
  assert.deepEqual([answer.text, answer.version, answer.arm, answer.responseId], ["0", "v2", "canary", ID]);
  assert.deepEqual(answer.responseIds, [ID, `${ID}.1`]);
});
