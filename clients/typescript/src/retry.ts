/**
 * When to try again, and after how long. Pure functions; the transport does the waiting.
 *
 * Back-off with full jitter: before retry k a uniform draw from [0, min(cap, base · 2^k)]. Where the server says
 * `Retry-After`, that long and then some, so that clients turned away together do not come back together.
 */
import { ConnectionError, StatusError, type PlauditError } from "./errors.js";

/** How persistent to be. No retry begins later than `totalMs` after the first try began. */
export interface RetryPolicy {
  maxRetries: number;
  totalMs: number;
  baseMs: number;
  capMs: number;
}

export const RETRY: RetryPolicy = { maxRetries: 4, totalMs: 120_000, baseMs: 500, capMs: 8_000 };

/** One failed try. `mayHaveActed`: whether the server may have done what was asked. */
export interface Failure {
  error: PlauditError;
  mayHaveActed: boolean;
}

const WORTH_ANOTHER_TRY = new Set([408, 429, 500, 502, 503, 504]);
const NOT_ACTED_UPON = new Set([429, 503]);

/** A refusal as a failed try. 429 and 503 are given before anything is done; other 5xx may come after. */
export function refused(error: StatusError): Failure {
  return { error, mayHaveActed: !NOT_ACTED_UPON.has(error.status) };
}

/** Whether the server is still busy with an earlier try of the same request. */
export function isInProgress({ error }: Failure): boolean {
  return error instanceof StatusError && error.status === 409 && error.code === "idempotency_in_progress";
}

/** Whether the same request may succeed later and may be sent again without doing anything twice. */
export function isWorthRetrying(failure: Failure, replayable: boolean): boolean {
  if (failure.mayHaveActed && !replayable) return false;
  if (failure.error instanceof ConnectionError) return true;
  const refusedFor = failure.error instanceof StatusError && WORTH_ANOTHER_TRY.has(failure.error.status);
  return refusedFor || isInProgress(failure);
}

/** Where a request stands. `draw` is uniform in [0, 1). */
export interface Attempt {
  retry: number;
  elapsedMs: number;
  draw: number;
  replayable: boolean;
}

/** How long to wait before trying again, in milliseconds; undefined to give up. */
export function pauseBeforeRetry(policy: RetryPolicy, failure: Failure, attempt: Attempt): number | undefined {
  if (!isWorthRetrying(failure, attempt.replayable)) return undefined;
  if (attempt.retry >= policy.maxRetries && !isInProgress(failure)) return undefined;
  let pause = attempt.draw * Math.min(policy.capMs, policy.baseMs * 2 ** Math.min(attempt.retry, 30));
  const asked = failure.error instanceof StatusError ? failure.error.retryAfterMs : null;
  if (asked !== null) pause = asked + Math.min(pause, asked);
  return attempt.elapsedMs + pause <= policy.totalMs ? pause : undefined;
}

/** `Retry-After` in milliseconds (a number of seconds or a date); null where absent or unreadable. */
export function parseRetryAfter(header: string | null, now = Date.now()): number | null {
  const said = header?.trim() ?? "";
  if (/^[0-9]{1,9}$/.test(said)) return Number(said) * 1000;
  const moment = /[a-z]{3}/i.test(said) ? Date.parse(said) : Number.NaN;
  return Number.isNaN(moment) ? null : Math.max(0, moment - now);
}
