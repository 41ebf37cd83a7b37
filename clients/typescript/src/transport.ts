/** Requests and their retries over `fetch`. */
import { ConfigurationError, ConnectionError, InvalidRequestError, PlauditError, ResponseError, TimeoutError } from "./errors.js";
import { AuthenticationError, errorDetail, statusError, type StatusError } from "./errors.js";
import { isInProgress, parseRetryAfter, pauseBeforeRetry, refused, RETRY, type Failure, type RetryPolicy } from "./retry.js";
import type { QueryValue } from "./api.js";

export interface ClientOptions {
  /** The server's address. Else `PLAUDIT_URL` (Node), the page's own origin (browsers), `http://127.0.0.1:8000`. */
  baseUrl?: string;
  /** `plk_…`. Else `PLAUDIT_API_KEY` (Node). A page should not hold one: see `rateByToken`. */
  apiKey?: string;
  /** Longest wait for an answer, or for the next piece of a stream, in milliseconds (default 600,000). */
  timeoutMs?: number;
  /** Tries after the first (default 4). */
  maxRetries?: number;
  /** No retry begins later than this after the first try, in milliseconds (default 120,000). */
  retryForMs?: number;
  /** In place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
  /** Time and chance in place of the real ones; for tests. */
  clock?: Clock;
}

export interface RequestOptions {
  /** Ends the request, or the stream. What is thrown then is the signal's own reason. */
  signal?: AbortSignal;
  timeoutMs?: number;
  /** Made anew for each POST unless given: give one to have a request recognised over processes. */
  idempotencyKey?: string;
  headers?: Record<string, string>;
}

/** Time and chance, in one place so that tests need neither. Milliseconds. */
export interface Clock {
  now(): number;
  draw(): number;
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** One request as the transport sees it. */
export interface Call {
  method: string;
  path: string;
  query?: Record<string, QueryValue>;
  body?: unknown;
  headers?: Record<string, string>;
  /** Whether sending it twice does the same as sending it once. */
  replayable?: boolean;
  /** False: it must not carry the API key, as a call under a feedback token. */
  withKey?: boolean;
  stream?: boolean;
  /** Error statuses whose body is an answer all the same. */
  accepts?: readonly number[];
  retries?: boolean;
}

/** An answer with 2xx; its body is unread and `idle` still runs. */
export interface Opened {
  response: Response;
  idle: IdleTimer;
}

export class Transport {
  readonly baseUrl: string;
  readonly #apiKey: string | undefined;
  readonly #timeoutMs: number;
  readonly #policy: RetryPolicy;
  readonly #fetch: typeof globalThis.fetch;
  readonly #clock: Clock;

  constructor(options: ClientOptions) {
    const env = environment();
    this.baseUrl = checkedUrl(options.baseUrl ?? env.PLAUDIT_URL ?? pageOrigin() ?? "http://127.0.0.1:8000");
    this.#apiKey = checkedKey(options.apiKey ?? env.PLAUDIT_API_KEY);
    this.#timeoutMs = options.timeoutMs ?? 600_000;
    const { maxRetries = RETRY.maxRetries, retryForMs = RETRY.totalMs } = options;
    this.#policy = { ...RETRY, maxRetries, totalMs: retryForMs };
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
    this.#clock = options.clock ?? realClock;
  }

  /** The JSON of an answer, with the answer's headers. */
  async json<T>(call: Call, options: RequestOptions = {}): Promise<{ data: T; response: Response }> {
    return this.#persist(call, options, async ({ response, idle }) => {
      const body = await guarded(idle, response.text());
      const data = parsed(body);
      if (data === undefined) throw new ResponseError(`${call.method} ${call.path}: the answer is no JSON. Is the address Plaudit's?`);
      return { data: data as T, response };
    });
  }

  /** The text of an answer. */
  async text(call: Call, options: RequestOptions = {}): Promise<string> {
    return this.#persist(call, options, ({ response, idle }) => guarded(idle, response.text()));
  }

  /** An answer whose body is to be read as it comes. */
  async open(call: Call, options: RequestOptions = {}): Promise<Opened> {
    return this.#persist({ ...call, stream: true }, options, (opened) => Promise.resolve(opened));
  }

  async #persist<T>(call: Call, options: RequestOptions, read: (opened: Opened) => Promise<T>): Promise<T> {
    const url = this.baseUrl + call.path + queryString(call.query);
    const init = this.#init(call, options);
    const began = this.#clock.now();
    for (let retry = 0; ; ) {
      const outcome = await this.#try(call, url, init, options, read);
      if ("value" in outcome) return outcome.value;
      const elapsedMs = this.#clock.now() - began;
      const attempt = { retry, elapsedMs, draw: this.#clock.draw(), replayable: call.replayable ?? !call.stream };
      const pause = call.retries === false ? undefined : pauseBeforeRetry(this.#policy, outcome, attempt);
      if (pause === undefined) throw outcome.error;
      if (!isInProgress(outcome)) retry += 1;
      await this.#clock.sleep(pause, options.signal);
    }
  }

  #init(call: Call, options: RequestOptions): RequestInit {
    const headers: Record<string, string> = { accept: call.stream ? "text/event-stream" : "application/json" };
    if (this.#apiKey !== undefined && call.withKey !== false) headers.authorization = `Bearer ${this.#apiKey}`;
    if (call.body !== undefined) headers["content-type"] = "application/json";
    // Made once for each call and kept over its retries, so that the server recognises them.
    if (call.method === "POST" && !call.stream) headers["idempotency-key"] = options.idempotencyKey ?? randomKey();
    Object.assign(headers, call.headers, options.headers);
    const body = call.body === undefined ? undefined : encoded(call.body);
    return { method: call.method, headers, body, credentials: "omit", redirect: "error" };
  }

  async #try<T>(
    call: Call,
    url: string,
    init: RequestInit,
    options: RequestOptions,
    read: (opened: Opened) => Promise<T>,
  ): Promise<{ value: T } | Failure> {
    options.signal?.throwIfAborted();
    const idle = new IdleTimer(options.timeoutMs ?? this.#timeoutMs, options.signal);
    let keep = false;
    try {
      const response = await guarded(idle, this.#fetch(url, { ...init, signal: idle.signal }));
      if (response.ok || call.accepts?.includes(response.status)) {
        const value = await read({ response, idle });
        keep = call.stream === true;
        return { value };
      }
      return refused(await this.#refusal(response, idle));
    } catch (error) {
      if (error instanceof ResponseError || options.signal?.aborted) throw error;
      return { error: broken(error, `${call.method} ${this.baseUrl}${shown(call)}`), mayHaveActed: !neverSent(error) };
    } finally {
      if (!keep) idle.stop();
    }
  }

  async #refusal(response: Response, idle: IdleTimer): Promise<StatusError> {
    const requestId = response.headers.get("x-request-id");
    const retryAfterMs = parseRetryAfter(response.headers.get("retry-after"));
    const known = { status: response.status, requestId, retryAfterMs };
    const detail = errorDetail(parsed(await guarded(idle, response.text())));
    if (detail === undefined) {
      const message = `HTTP ${response.status} without an error body: does a proxy stand before the server?`;
      return statusError({ message }, known);
    }
    const error = statusError(detail, known);
    if (!(error instanceof AuthenticationError) || this.#apiKey !== undefined) return error;
    return statusError({ ...detail, message: `${error.message} No key was given: pass apiKey.` }, known);
  }
}

/** Ends a request after so long without a sign of life, or when the caller's signal says so. */
export class IdleTimer {
  readonly #controller = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #forward: () => void;

  constructor(
    readonly timeoutMs: number,
    readonly caller?: AbortSignal,
  ) {
    this.#forward = () => this.#controller.abort(caller?.reason);
    caller?.addEventListener("abort", this.#forward, { once: true });
    this.touch();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** A sign of life: the wait begins anew. */
  touch(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#controller.abort(new TimeoutError(`No answer within ${this.timeoutMs / 1000} s. Is the server busy?`));
    }, this.timeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.caller?.removeEventListener("abort", this.#forward);
  }
}

/** The promise's value, or the timer's reason as soon as it says stop, whether or not fetch heard it. */
export function guarded<T>(idle: IdleTimer, promise: Promise<T>): Promise<T> {
  const { signal } = idle;
  return new Promise<T>((resolve, reject) => {
    const stop = (): void => reject(signal.reason as Error);
    const settle = (): void => signal.removeEventListener("abort", stop);
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, (error: unknown) => reject((signal.aborted ? signal.reason : error) as Error)).finally(settle);
  });
}

/** Our error for one of fetch's. */
export function broken(error: unknown, what: string): PlauditError {
  if (error instanceof PlauditError) return error;
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const why = cause instanceof Error ? cause.message : String(cause);
  return new ConnectionError(`${what}: no answer, or broken off (${why}). Is the server running, and the address right?`, {
    cause: error,
  });
}

const NEVER_SENT = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"]);

// Node's fetch names the reason; browsers do not, so there every lost request may have arrived.
function neverSent(error: unknown): boolean {
  const cause = error instanceof Error ? (error.cause as { code?: string } | undefined) : undefined;
  return NEVER_SENT.has(cause?.code ?? "");
}

/** One path segment out of an id; one that holds a slash stays one segment. */
export function segment(id: string): string {
  if (id === "" || id === "." || id === "..") throw new InvalidRequestError(`${JSON.stringify(id)} is not a name or id`);
  return encodeURIComponent(id);
}

/** A random UUID. `crypto.randomUUID` is missing on pages served over plain HTTP. */
export function randomKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

const realClock: Clock = {
  now: () => performance.now(),
  draw: () => Math.random(),
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      const stop = (): void => {
        clearTimeout(timer);
        reject(signal?.reason as Error);
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener("abort", stop);
        resolve();
      }, ms);
      signal?.addEventListener("abort", stop, { once: true });
    }),
};

function queryString(query: Record<string, QueryValue> = {}): string {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  if (pairs.length === 0) return "";
  const text = pairs.map(([name, value]): [string, string] => [name, value instanceof Date ? value.toISOString() : String(value)]);
  return `?${new URLSearchParams(text)}`;
}

function shown(call: Call): string {
  return call.withKey === false ? call.path.replace(/[^/]+$/, "…") : call.path; // a feedback token is a secret
}

function encoded(body: unknown): string {
  try {
    return JSON.stringify(body);
  } catch (error) {
    throw new InvalidRequestError("the request cannot be written as JSON", { cause: error });
  }
}

function parsed(body: string): unknown {
  try {
    return JSON.parse(body) as unknown;
  } catch {
    return undefined;
  }
}

function checkedUrl(given: string): string {
  const url = URL.canParse(given) ? new URL(given) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol)) {
    throw new ConfigurationError(`${JSON.stringify(given)} is not a server's address: http:// or https://`);
  }
  if (url.username || url.password || url.search || url.hash) {
    throw new ConfigurationError("the server's address may hold no password, query or fragment");
  }
  return url.href.replace(/\/+$/, "").replace(/\/v1$/, "");
}

function checkedKey(key: string | undefined): string | undefined {
  if (key !== undefined && !/^[\x21-\x7e]+$/.test(key)) throw new ConfigurationError("the API key is no header value: printable ASCII only");
  return key;
}

function environment(): Record<string, string | undefined> {
  const node = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return node.process?.env ?? {};
}

function pageOrigin(): string | undefined {
  const origin = (globalThis as { location?: { origin?: string } }).location?.origin;
  return origin?.startsWith("http") ? origin : undefined;
}
