import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import * as plaudit from "../src/index.js";
import { ID, json, refusal, scripted } from "./support.js";

const VOTE = { id: "fb_1", response_id: ID, value: 1 };

test("a vote carries the key, an idempotency key and only what was said", async () => {
  const { client, sent } = scripted([json(VOTE, 201)]);
  await client.feedback.rate(ID, "up", { tags: ["clear"], comment: "<b>" });
  assert.equal(sent[0]!.url.pathname, "/v1/feedback");
  assert.equal(sent[0]!.headers.get("authorization"), "Bearer plk_test");
  assert.match(sent[0]!.headers.get("idempotency-key")!, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual(sent[0]!.body, { response_id: ID, value: "up", tags: ["clear"], comment: "<b>" });
});

test("a retraction says null, a correction alone says no value", async () => {
  const { client, sent } = scripted([json(VOTE)]);
  await client.feedback.retract(ID);
  await client.feedback.correct(ID, "Better.");
  assert.deepEqual(sent.map(({ body }) => body), [
    { response_id: ID, value: null },
    { response_id: ID, correction: "Better." },
  ]);
});

test("under a token the API key stays at home", async () => {
  const { client, sent } = scripted([json(VOTE, 201, { "x-feedback-token": "ft1_next" })]);
  const { nextToken, feedback } = await client.rateByToken("ft1_a/b", { value: "down" });
  assert.equal(sent[0]!.headers.get("authorization"), null);
  assert.equal(sent[0]!.url.pathname, "/v1/feedback/t/ft1_a%2Fb");
  assert.deepEqual([nextToken, feedback.id], ["ft1_next", "fb_1"]);
});

test("a token is not in the error of a lost connection", async () => {
  const { client } = scripted([new TypeError("fetch failed")], { maxRetries: 0 });
  await assert.rejects(client.rateByToken("ft1_secret", { value: "up" }), (error: Error) => !error.message.includes("secret"));
});

test("retries share one idempotency key, wait with back-off and honour Retry-After", async () => {
  const lost = new TypeError("fetch failed");
  const { client, sent, clock } = scripted([lost, refusal(503, "overloaded", { "retry-after": "3" }), json(VOTE, 201)]);
  await client.feedback.rate(ID, true);
  assert.equal(new Set(sent.map(({ headers }) => headers.get("idempotency-key"))).size, 1);
  assert.equal(sent.length, 3);
  assert.deepEqual(clock.naps, [500, 4000]);
});

test("a request that is still under way is waited for", async () => {
  const { client, sent } = scripted([...Array.from({ length: 6 }, () => refusal(409, "idempotency_in_progress")), json(VOTE)]);
  await client.feedback.rate(ID, true);
  assert.equal(sent.length, 7);
});

test("what would be done twice is not sent twice", async () => {
  for (const use of [
    (client: plaudit.Plaudit) => client.keys.create({ name: "app", roles: ["chat"] }),
    (client: plaudit.Plaudit) => client.aliases.set("stable", { version: "v1" }, { ifMatch: "7" }),
    (client: plaudit.Plaudit) => client.chat.stream({ messages: "Hi." }),
  ]) {
    const { client, sent } = scripted([new TypeError("broken off")]);
    await assert.rejects(use(client), plaudit.ConnectionError);
    assert.equal(sent.length, 1);
  }
});

test("a refused connection was never sent, so that even a stream may be tried again", async () => {
  const refusedConnection = new TypeError("fetch failed", { cause: Object.assign(new Error("no"), { code: "ECONNREFUSED" }) });
  const { client, sent } = scripted([refusedConnection], { maxRetries: 2 });
  await assert.rejects(client.chat.stream({ messages: "Hi." }), /Is the server running/);
  assert.equal(sent.length, 3);
});

test("no retry begins after the time for retries is over", async () => {
  const { client, sent } = scripted([refusal(429, null, { "retry-after": "100" })], { retryForMs: 100_000 });
  await assert.rejects(client.versions.list(), plaudit.RateLimitError);
  assert.equal(sent.length, 1); // it would begin after 100.5 s
});

test("each status of docs/reference/errors.md has a class of its own, which is what is thrown", async () => {
  const documented = readFileSync(new URL("../../../../docs/reference/errors.md", import.meta.url), "utf8");
  const statuses = new Set([...documented.matchAll(/^\| `\w+` \| (\d{3}) \|/gm)].map(([, status]) => Number(status)));
  assert.ok(statuses.size >= 15);
  const classes = new Set<unknown>();
  for (const status of statuses) {
    const { client } = scripted([refusal(status, "some_code", { "x-request-id": "req-1" })], { maxRetries: 0 });
    const error = await client.versions.list().then(() => assert.fail(), (thrown: unknown) => thrown);
    assert.ok(error instanceof plaudit.StatusError);
    assert.equal(error.constructor, plaudit.ERROR_OF_STATUS[status]);
    assert.deepEqual([error.status, error.code, error.requestId, error.name], [status, "some_code", "req-1", error.constructor.name]);
    classes.add(error.constructor);
  }
  assert.equal(classes.size, statuses.size);
});

test("an answer that is not Plaudit's is told from a refusal", async () => {
  const html = () => new Response("<h1>hello</h1>", { status: 200 });
  await assert.rejects(scripted([html]).client.versions.list(), plaudit.ResponseError);
  const proxy = () => new Response("<h1>bad gateway</h1>", { status: 502 });
  await assert.rejects(scripted([proxy], { maxRetries: 0 }).client.versions.list(), /proxy/);
});

test("without a key, 401 says so", async () => {
  const { client } = scripted([refusal(401)], { apiKey: undefined });
  await assert.rejects(client.versions.list(), /No key was given/);
});

test("lists are read page by page", async () => {
  const pages = [json({ data: [{ name: "v2" }], has_more: true, next: "v2" }), json({ data: [{ name: "v1" }], has_more: false })];
  const { client, sent } = scripted(pages);
  const names = [];
  for await (const version of client.iterate("GET /v1/versions", { limit: 1, state: "ready" })) names.push(version.name);
  assert.deepEqual(names, ["v2", "v1"]);
  assert.deepEqual(sent.map(({ url }) => url.search), ["?limit=1&state=ready", "?limit=1&state=ready&after=v2"]);
});

test("ids cannot climb out of their path", async () => {
  const { client, sent } = scripted([json({})]);
  await client.versions.get("../../keys");
  assert.equal(sent[0]!.url.pathname, "/v1/versions/..%2F..%2Fkeys");
  await assert.rejects(client.versions.get(".."), plaudit.InvalidRequestError);
});

test("bad addresses and keys are refused at once", () => {
  for (const baseUrl of ["javascript:alert(1)", "plaudit", "https://user:pass@host", "https://host/?a=1"]) {
    assert.throws(() => new plaudit.Plaudit({ baseUrl }), plaudit.ConfigurationError);
  }
  assert.throws(() => new plaudit.Plaudit({ baseUrl: "http://x", apiKey: "plk_\n" }), plaudit.ConfigurationError);
  assert.equal(new plaudit.Plaudit({ baseUrl: "http://x/v1/" }).baseUrl, "http://x");
});

test("a caller's signal ends the request with the caller's reason", async () => {
  const never = () => new Promise<Response>(() => undefined);
  const { client } = scripted([never]);
  const reason = new Error("left the page");
  await assert.rejects(client.versions.list({}, { signal: AbortSignal.abort(reason) }), reason);
});
