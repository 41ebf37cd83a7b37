/** The client: endpoints in groups over one typed `request`. */
import type { Arguments, BodyOf, QueryOf, QueryValue, ReplyOf, Route, Schemas } from "./api.js";
import { chatRequest, ChatStream, completion, type ChatCompletion, type ChatParams } from "./chat.js";
import { InvalidRequestError } from "./errors.js";
import { segment, Transport, type Call, type ClientOptions, type RequestOptions } from "./transport.js";

type Feedback = Schemas["Feedback"];

/** One list as the server gives it; pass `next` as `after` for the next page. */
export interface Page<T> {
  data: T[];
  has_more?: boolean;
  next?: string | null;
}

type ItemOf<R extends Route> = ReplyOf<R> extends { data: (infer T)[] } ? T : never;

/** What may be said of an answer beside the vote. */
export type Words = Omit<BodyOf<"POST /v1/feedback">, "response_id" | "value">;

/** `"up"`, `"down"`, a boolean or −1…1. */
export type Vote = NonNullable<BodyOf<"POST /v1/feedback">["value"]>;

/** A vote under a token, and the token for changing one's mind. */
export interface TokenVote {
  feedback: Feedback;
  nextToken: string | null;
}

type Filters<R extends Route> = QueryOf<R> & { [metadata: `metadata[${string}]`]: string };

const COMPLETIONS = "/v1/chat/completions";

/** A client of a Plaudit server. In a browser, prefer `rateByToken` and no key. */
export class Plaudit {
  readonly #transport: Transport;

  constructor(options: ClientOptions = {}) {
    this.#transport = new Transport(options);
  }

  /** The server's address. */
  get baseUrl(): string {
    return this.#transport.baseUrl;
  }

  /**
   * Any route of the API, typed from its OpenAPI document:
   * `client.request("POST /v1/rollouts/{rollout_id}/pause", { path: { rollout_id }, body: { reason } })`.
   */
  async request<R extends Route>(route: R, given: Arguments<R>, options?: RequestOptions): Promise<ReplyOf<R>> {
    const { data } = await this.#transport.json<ReplyOf<R>>(call(route, given as Parts), options);
    return data;
  }

  /** All items of a list, page by page: `for await (const version of client.iterate("GET /v1/versions"))`. */
  async *iterate<R extends Route>(route: R, query?: QueryOf<R>, options?: RequestOptions): AsyncGenerator<ItemOf<R>> {
    let after = (query as { after?: string | null } | undefined)?.after;
    for (;;) {
      const asked = call(route, { query: { ...query, after } });
      const { data } = await this.#transport.json<Page<ItemOf<R>>>(asked, options);
      yield* data.data;
      if (!data.has_more || !data.next || data.next === after) return;
      after = data.next;
    }
  }

  readonly chat = {
    /** Ask, and wait for the whole answer: `.text`, `.responseId`, `.version`. */
    create: async (params: ChatParams, options?: RequestOptions): Promise<ChatCompletion> => {
      const { data, response } = await this.#transport.json(this.#chat(params, false), options);
      return completion(data, response);
    },
    /** Ask, and get the answer as it is spoken. Tried again only until the server has accepted. */
    stream: async (params: ChatParams, options?: RequestOptions): Promise<ChatStream> =>
      new ChatStream(await this.#transport.open(this.#chat(params, true), options)),
    /** The names that a request may ask for. */
    models: (options?: RequestOptions) => this.request("GET /v1/models", {}, options),
  };

  readonly completions = {
    /** Stored answers, newest first. `"metadata[name]": value` keeps those that carry it. */
    list: (query?: Filters<"GET /v1/chat/completions">, options?: RequestOptions) =>
      this.request("GET /v1/chat/completions", { query }, options),
    get: (response_id: string, options?: RequestOptions) =>
      this.request("GET /v1/chat/completions/{response_id}", { path: { response_id } }, options),
    /** Erase one stored answer. */
    delete: (response_id: string, options?: RequestOptions) =>
      this.request("DELETE /v1/chat/completions/{response_id}", { path: { response_id } }, options),
  };

  readonly feedback = {
    /** Rate an answer. A second word for the same (answer, key, end user) replaces the first, words and all. */
    rate: (response_id: string, value: Vote, words: Words = {}, options?: RequestOptions) =>
      this.feedback.create({ ...words, response_id, value }, options),
    /** Take a vote back. */
    retract: (response_id: string, words: Pick<Words, "key" | "end_user"> = {}, options?: RequestOptions) =>
      this.feedback.create({ ...words, response_id, value: null }, options),
    /** Say what the answer should have been; with `value`, the vote as well. */
    correct: (response_id: string, correction: string, words: Words & { value?: Vote } = {}, options?: RequestOptions) =>
      this.feedback.create({ ...words, response_id, correction }, options),
    create: (body: BodyOf<"POST /v1/feedback">, options?: RequestOptions) =>
      this.request("POST /v1/feedback", { body }, options),
    /** Many at once, each judged on its own: look at the `status` of each result. */
    batch: (items: BodyOf<"POST /v1/feedback">[], options?: RequestOptions) =>
      this.request("POST /v1/feedback/batch", { body: { items } as unknown as BodyOf<"POST /v1/feedback/batch"> }, options),
    /** A token under which a browser may rate one answer, each key once. Every stored chat comes with one. */
    token: (body: BodyOf<"POST /v1/feedback/tokens">, options?: RequestOptions) =>
      this.request("POST /v1/feedback/tokens", { body }, options),
    list: (query?: QueryOf<"GET /v1/feedback">, options?: RequestOptions) =>
      this.request("GET /v1/feedback", { query }, options),
    get: (feedback_id: string, options?: RequestOptions) =>
      this.request("GET /v1/feedback/{feedback_id}", { path: { feedback_id } }, options),
    delete: (feedback_id: string, options?: RequestOptions) =>
      this.request("DELETE /v1/feedback/{feedback_id}", { path: { feedback_id } }, options),
  };

  /** Rate under a feedback token. The API key is not sent, so a page of any origin may do it. */
  async rateByToken(token: string, body: BodyOf<"POST /v1/feedback/t/{token}">, options?: RequestOptions): Promise<TokenVote> {
    const asked: Call = { ...call("POST /v1/feedback/t/{token}", { path: { token }, body }), withKey: false };
    const { data, response } = await this.#transport.json<Feedback>(asked, options);
    return { feedback: data, nextToken: response.headers.get("x-feedback-token") };
  }

  readonly comparisons = {
    /** One answer preferred to another on the same prompt. Each side is an id or `{ text, version }`. */
    create: (body: BodyOf<"POST /v1/comparisons">, options?: RequestOptions) =>
      this.request("POST /v1/comparisons", { body }, options),
  };

  readonly events = {
    /** What a user did with an answer: `copy`, `regenerate`, `edit`, `abandon`, `share`. */
    create: (body: BodyOf<"POST /v1/events">, options?: RequestOptions) => this.request("POST /v1/events", { body }, options),
  };

  readonly versions = {
    list: (query?: QueryOf<"GET /v1/versions">, options?: RequestOptions) =>
      this.request("GET /v1/versions", { query }, options),
    get: (version: string, options?: RequestOptions) =>
      this.request("GET /v1/versions/{version}", { path: { version } }, options),
    lineage: (version: string, options?: RequestOptions) =>
      this.request("GET /v1/versions/{version}/lineage", { path: { version } }, options),
    register: (body: BodyOf<"POST /v1/versions">, options?: RequestOptions) =>
      this.request("POST /v1/versions", { body }, options),
    /** Make it stable. */
    promote: (version: string, reason?: string, options?: RequestOptions) =>
      this.request("POST /v1/versions/{version}/promote", { path: { version }, body: { reason } }, options),
  };

  readonly aliases = {
    list: (options?: RequestOptions) => this.request("GET /v1/aliases", {}, options),
    /** Point an alias at a version. `ifMatch`: the alias's etag; only if nobody moved it since. */
    set: async (
      name: string,
      body: BodyOf<"PUT /v1/aliases/{name}">,
      { ifMatch, ...options }: RequestOptions & { ifMatch?: string } = {},
    ): Promise<Schemas["Alias"]> => {
      const asked = call("PUT /v1/aliases/{name}", { path: { name }, body });
      const headers: Record<string, string> = ifMatch === undefined ? {} : { "if-match": ifMatch };
      // A second try after an unseen success would be refused by its own etag.
      const once: Call = { ...asked, headers, replayable: ifMatch === undefined };
      return (await this.#transport.json<Schemas["Alias"]>(once, options)).data;
    },
  };

  /** Move `stable` back, to `previous` or a version's name. */
  async rollback(body: BodyOf<"POST /v1/rollback"> = {}, options?: RequestOptions) {
    return this.request("POST /v1/rollback", { body }, options);
  }

  readonly rollouts = {
    list: (query?: QueryOf<"GET /v1/rollouts">, options?: RequestOptions) =>
      this.request("GET /v1/rollouts", { query }, options),
    start: (body: BodyOf<"POST /v1/rollouts">, options?: RequestOptions) =>
      this.request("POST /v1/rollouts", { body }, options),
    /** With evidence, interval, guardrails and the verdict in words. */
    get: (rollout_id: string, options?: RequestOptions) =>
      this.request("GET /v1/rollouts/{rollout_id}", { path: { rollout_id } }, options),
    promote: (id: string, reason?: string, options?: RequestOptions) => this.#decide("promote", id, reason, options),
    pause: (id: string, reason?: string, options?: RequestOptions) => this.#decide("pause", id, reason, options),
    resume: (id: string, reason?: string, options?: RequestOptions) => this.#decide("resume", id, reason, options),
    abort: (id: string, reason?: string, options?: RequestOptions) => this.#decide("abort", id, reason, options),
  };

  readonly runs = {
    list: (query?: QueryOf<"GET /v1/training/runs">, options?: RequestOptions) =>
      this.request("GET /v1/training/runs", { query }, options),
    get: (run_id: string, options?: RequestOptions) =>
      this.request("GET /v1/training/runs/{run_id}", { path: { run_id } }, options),
    metrics: (run_id: string, options?: RequestOptions) =>
      this.request("GET /v1/training/runs/{run_id}/metrics", { path: { run_id } }, options),
  };

  readonly batches = {
    get: (batch_id: string, options?: RequestOptions) =>
      this.request("GET /v1/batches/{batch_id}", { path: { batch_id } }, options),
  };

  readonly replicas = {
    list: (options?: RequestOptions) => this.request("GET /v1/replicas", {}, options),
    add: (url: string, options?: RequestOptions) => this.request("POST /v1/replicas", { body: { url } }, options),
    drain: (name: string, options?: RequestOptions) =>
      this.request("POST /v1/replicas/{name}/drain", { path: { name } }, options),
    remove: (name: string, options?: RequestOptions) => this.request("DELETE /v1/replicas/{name}", { path: { name } }, options),
  };

  readonly keys = {
    /** Make a key. Its `secret` is shown this once, so a lost answer is not asked for again. */
    create: async (body: BodyOf<"POST /v1/keys">, options?: RequestOptions): Promise<Schemas["NewKey"]> => {
      const asked: Call = { ...call("POST /v1/keys", { body }), replayable: false };
      return (await this.#transport.json<Schemas["NewKey"]>(asked, options)).data;
    },
    list: (query?: QueryOf<"GET /v1/keys">, options?: RequestOptions) => this.request("GET /v1/keys", { query }, options),
    own: (options?: RequestOptions) => this.request("GET /v1/keys/self", {}, options),
    revoke: (key_id: string, options?: RequestOptions) => this.request("DELETE /v1/keys/{key_id}", { path: { key_id } }, options),
  };

  readonly audit = {
    list: (query?: QueryOf<"GET /v1/audit">, options?: RequestOptions) => this.request("GET /v1/audit", { query }, options),
  };

  /** Whether the process answers. Not tried again. */
  async health(options?: RequestOptions): Promise<Schemas["Health"]> {
    return (await this.#transport.json<Schemas["Health"]>({ method: "GET", path: "/healthz", retries: false }, options)).data;
  }

  /** Whether a chat would be answered; a 503 that says no is an answer here. Not tried again. */
  async ready(options?: RequestOptions): Promise<Schemas["Health"]> {
    const asked: Call = { method: "GET", path: "/readyz", retries: false, accepts: [503] };
    return (await this.#transport.json<Schemas["Health"]>(asked, options)).data;
  }

  /** Prometheus' text. */
  async metrics(options?: RequestOptions): Promise<string> {
    return this.#transport.text({ method: "GET", path: "/metrics", headers: { accept: "text/plain" } }, options);
  }

  #chat(params: ChatParams, stream: boolean): Call {
    return { method: "POST", path: COMPLETIONS, ...chatRequest(params, stream) };
  }

  #decide(verb: "promote" | "pause" | "resume" | "abort", rollout_id: string, reason?: string, options?: RequestOptions) {
    return this.request(`POST /v1/rollouts/{rollout_id}/${verb}`, { path: { rollout_id }, body: { reason } }, options);
  }
}

type Parts = { path?: unknown; query?: unknown; body?: unknown };

function call(route: string, given: Parts): Call {
  const space = route.indexOf(" ");
  const ids = (given.path ?? {}) as Record<string, string>;
  const path = route.slice(space + 1).replace(/\{(\w+)\}/g, (_, name: string) => {
    const id = ids[name];
    if (id === undefined) throw new InvalidRequestError(`${route} needs ${name}`);
    return segment(id);
  });
  return { method: route.slice(0, space), path, query: given.query as Record<string, QueryValue>, body: given.body };
}
