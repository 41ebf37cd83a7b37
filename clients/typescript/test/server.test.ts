/** Against the real server with the fake engine, which tests/clients starts. */
import assert from "node:assert/strict";
import test from "node:test";
import * as plaudit from "../src/index.js";

const baseUrl = process.env.PLAUDIT_TEST_URL;
const apiKey = process.env.PLAUDIT_TEST_KEY;
const version = process.env.PLAUDIT_TEST_VERSION ?? "";
const options = { skip: baseUrl === undefined ? "started by tests/clients" : false };
const client = new plaudit.Plaudit({ baseUrl: baseUrl ?? "http://unused.test", apiKey });

test("a user asks, hears, rates, changes their mind and corrects", options, async () => {
  const answer = await client.chat.create({ messages: "Say hello.", user: "ada", train: true, metadata: { page: "1" } });
  assert.deepEqual([answer.version, answer.arm], ["base", "stable"]);
  const stream = await client.chat.stream({ messages: "Say hello.", user: "ada" });
  let spoken = "";
  for await (const { text } of stream) spoken += text;
  assert.match(spoken, /^\[fake engine\]/);
  assert.deepEqual([stream.text, stream.version, stream.finishReason], [spoken, "base", "stop"]);
  assert.deepEqual([answer.compareWith, stream.compareWith], ["policy", "policy"]);

  const vote = await client.feedback.rate(answer.responseId, "up", { comment: "=cmd|'x'", tags: ["clear"], end_user: "ada" });
  assert.deepEqual([vote.value, vote.revision, vote.status], [1, 1, "created"]);
  const corrected = await client.feedback.correct(answer.responseId, "Hello!", { value: "down", end_user: "ada" });
  assert.deepEqual([corrected.id, corrected.value, corrected.correction, corrected.revision], [vote.id, -1, "Hello!", 2]);
  assert.equal((await client.feedback.retract(answer.responseId, { end_user: "ada" })).retracted, true);
  assert.equal((await client.feedback.get(vote.id)).revision, 3);

  const compared = await client.comparisons.create({ chosen: answer.responseId, rejected: stream.responseId!, end_user: "ada" });
  assert.equal(compared.chosen, answer.responseId);
  assert.equal((await client.events.create({ response_id: answer.responseId, type: "copy" })).type, "copy");
  const { results } = await client.feedback.batch([{ response_id: stream.responseId!, value: "down" }, { response_id: "no" }]);
  assert.deepEqual(results.map(({ status }) => status), [201, 422]);
  const found = await client.completions.list({ "metadata[page]": "1", limit: 1 });
  assert.deepEqual(found.data.map(({ id }) => id), [answer.responseId]);
});

test("a browser votes under its token, once, and again under the next", options, async () => {
  const answer = await client.chat.create({ messages: "Rate me.", user: "bob" });
  const browser = new plaudit.Plaudit({ baseUrl });
  const first = await browser.rateByToken(answer.feedbackToken!, { value: "up", response_id: answer.responseId });
  assert.equal(first.feedback.value, 1);
  await assert.rejects(browser.rateByToken(answer.feedbackToken!, { value: "down" }), (error) => {
    return error instanceof plaudit.ConflictError && error.code === "token_used";
  });
  const second = await browser.rateByToken(first.nextToken!, { value: "down", tags: ["wrong"] });
  assert.deepEqual([second.feedback.id, second.feedback.value], [first.feedback.id, -1]);
  await assert.rejects(browser.rateByToken("ft1_forged", { value: "up" }), plaudit.AuthenticationError);
  const made = await client.feedback.token({ response_id: answer.responseId, keys: ["helpful"], expires_in: 60 });
  await assert.rejects(browser.rateByToken(made.token, { value: "up" }), plaudit.PermissionDeniedError);
  assert.equal((await browser.rateByToken(made.token, { value: "up", key: "helpful" })).feedback.key, "helpful");
});

test("a repeated request gets the first answer again; another body under its key does not", options, async () => {
  const { responseId } = await client.chat.create({ messages: "Twice." });
  const once = { idempotencyKey: crypto.randomUUID() };
  const first = await client.feedback.rate(responseId, "up", {}, once);
  assert.deepEqual(await client.feedback.rate(responseId, "up", {}, once), first);
  await assert.rejects(client.feedback.rate(responseId, "down", {}, once), (error) => {
    return error instanceof plaudit.ConflictError && error.code === "idempotency_key_reused";
  });
});

test("refusals are what the documentation says", options, async () => {
  const unstored = await client.chat.create({ messages: "Forget me.", store: false });
  assert.deepEqual([unstored.feedbackToken, unstored.compareWith], [null, null]);
  await assert.rejects(client.feedback.rate(unstored.responseId, "up"), plaudit.GoneError);
  await assert.rejects(client.feedback.rate("chatcmpl-01890a5d-ac96-774b-bcce-b302099a8057", "up"), plaudit.NotFoundError);
  await assert.rejects(client.feedback.rate(unstored.responseId, 3), plaudit.UnprocessableError);
  await assert.rejects(new plaudit.Plaudit({ baseUrl, apiKey: "plk_wrong" }).versions.list(), plaudit.AuthenticationError);
  await assert.rejects(client.chat.create({ messages: "Hi.", model: "policy@v999" }), plaudit.NotFoundError);
});

test("an operator promotes, loses a race, rolls back and steers a rollout", options, async () => {
  const names = [];
  for await (const each of client.iterate("GET /v1/versions", { limit: 1 })) names.push(each.name);
  assert.ok(names.includes(version));
  assert.equal((await client.versions.get(version)).state, "ready");
  assert.deepEqual((await client.versions.lineage(version)).parents, ["base"]);
  const before = (await client.aliases.list()).data.find(({ name }) => name === "stable")!;

  const rollout = await client.rollouts.start({ candidate: version, steps: [{ weight: 0.2 }], min_raters: 100 });
  assert.equal((await client.rollouts.pause(rollout.id, "look")).state, "paused");
  assert.equal((await client.request("POST /v1/rollouts/{rollout_id}/resume", { path: { rollout_id: rollout.id } })).state, "running");
  assert.equal((await client.rollouts.abort(rollout.id, "enough")).state, "aborted");
  assert.equal((await client.rollouts.get(rollout.id)).candidate, version);

  assert.equal((await client.versions.promote(version, "proven")).version, version);
  assert.equal((await client.chat.create({ messages: "Who speaks?" })).version, version);
  await assert.rejects(client.aliases.set("stable", { version: "base" }, { ifMatch: before.etag }), plaudit.PreconditionFailedError);
  assert.equal((await client.rollback({ reason: "test" })).version, "base");
  assert.ok((await client.audit.list({ limit: 100 })).data.some(({ action }) => action.startsWith("rollout.")));
});

test("keys, runs, batches, replicas, health and metrics answer", options, async () => {
  const made = await client.keys.create({ name: "app", roles: ["chat"] });
  const limited = new plaudit.Plaudit({ baseUrl, apiKey: made.secret });
  await assert.rejects(limited.versions.list(), plaudit.PermissionDeniedError);
  assert.deepEqual((await limited.keys.own()).roles, ["chat"]);
  assert.ok((await client.keys.revoke(made.id)).revoked_at);
  const [run] = (await client.runs.list()).data;
  assert.equal((await client.runs.get(run!.id)).id, run!.id);
  assert.ok(Array.isArray((await client.runs.metrics(run!.id)).data));
  assert.equal((await client.batches.get(run!.batch_id)).state, "consumed");
  assert.ok(Array.isArray((await client.replicas.list()).data));
  assert.equal((await client.health()).status, "ok");
  assert.equal((await client.ready()).status, "ok");
  assert.match(await client.metrics(), /^# HELP /m);
  assert.ok((await client.chat.models()).data.some(({ id }) => id === "policy"));
});
