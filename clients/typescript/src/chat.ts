/** Chat answers as OpenAI has them, with what Plaudit adds: which version spoke, and the id to rate. */
import type { Schemas } from "./api.js";
import { ConnectionError, errorDetail, ResponseError, statusError } from "./errors.js";
import { SSEDecoder } from "./sse.js";
import { broken, guarded, type Opened } from "./transport.js";

export interface ChatMessage {
  role: string;
  content?: string | null;
  tool_calls?: unknown[];
  [other: string]: unknown;
}

/** What a chat asks. A string as `messages` is a single user message; unknown fields go to the engine. */
export type ChatParams = Omit<Schemas["ChatRequest"], "messages" | "stream"> & {
  messages: string | ChatMessage[];
  /** Who is asking, where there is no `user`: sticky assignment. Travels as `x-session-id`. */
  session?: string;
  [engineField: string]: unknown;
};

export interface ChatChoice {
  index: number;
  message: ChatMessage;
  finish_reason: string | null;
  logprobs?: unknown;
}

/** Token counts. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/** What the headers of an answer say. */
export interface AnswerFacts {
  /** The version that spoke, such as `v42`. */
  version: string | null;
  /** `stable`, `canary` or `pinned`. */
  arm: string | null;
  /** A token that may rate this answer and nothing else: a browser may have it. Null where nothing was stored. */
  feedbackToken: string | null;
  /** The model whose answer to the same messages the server asks to show beside this one; mostly null. */
  compareWith: string | null;
  /** What to look for in the server's log. */
  requestId: string | null;
}

/** A whole answer. `text` and `responseId` are of the first choice; `responseIds` has one for each. */
export interface ChatCompletion extends AnswerFacts {
  id: string;
  model: string;
  created: number;
  choices: ChatChoice[];
  usage?: Usage;
  system_fingerprint?: string;
  text: string;
  responseId: string;
  responseIds: string[];
}

export interface ChunkChoice {
  index: number;
  delta: { role?: string; content?: string | null; tool_calls?: unknown[] };
  finish_reason?: string | null;
}

/** One event of a streamed answer. `text`: what it adds to the first choice. */
export interface ChatChunk {
  id: string;
  model: string;
  choices: ChunkChoice[];
  usage?: Usage | null;
  text: string;
}

/** The body and headers of a chat request. */
export function chatRequest({ session, messages, ...fields }: ChatParams, stream: boolean) {
  const conversation = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
  const headers: Record<string, string> = session === undefined ? {} : { "x-session-id": session };
  return { body: { ...fields, messages: conversation, ...(stream ? { stream } : {}) }, headers };
}

/** An answer with what its headers say. */
export function completion(data: unknown, response: Response): ChatCompletion {
  const said = data as Pick<ChatCompletion, "id" | "model" | "created" | "choices">;
  if (typeof said?.id !== "string" || !Array.isArray(said.choices) || said.choices.length === 0) {
    throw new ResponseError("The answer is no chat completion. Is the address Plaudit's?");
  }
  const responseIds = said.choices.map(({ index }) => (index === 0 ? said.id : `${said.id}.${index}`));
  const text = said.choices[0]?.message.content ?? "";
  return { ...said, ...facts(response.headers, said.model), text, responseId: said.id, responseIds };
}

function facts(headers: Headers, model: string): AnswerFacts {
  return {
    version: headers.get("x-model-version") ?? (model.split("@")[1] || null),
    arm: headers.get("x-rollout-arm"),
    feedbackToken: headers.get("x-feedback-token"),
    compareWith: headers.get("x-compare-with"),
    requestId: headers.get("x-request-id"),
  };
}

/**
 * A streamed answer: `for await (const chunk of stream)`. Leaving the loop closes the connection, and the server stops
 * generating. What is known so far is in the properties.
 */
export class ChatStream implements AsyncIterable<ChatChunk>, AnswerFacts {
  /** What the first choice has said so far. */
  text = "";
  /** The id to rate; known from the first chunk on. */
  responseId: string | null = null;
  /** `stop`, `length` or `tool_calls`; null while it speaks. */
  finishReason: string | null = null;
  /** Token counts, where `stream_options: { include_usage: true }` asked for them. */
  usage: Usage | null = null;

  readonly #opened: Opened;
  readonly #events = new SSEDecoder();
  #model = "";
  #done = false;
  #begun = false;

  constructor(opened: Opened) {
    this.#opened = opened;
    const kind = opened.response.headers.get("content-type") ?? "";
    if (kind.startsWith("text/event-stream") && opened.response.body) return;
    void this.abort();
    throw new ResponseError(`Wanted a stream of events, got ${JSON.stringify(kind)}. Is the address Plaudit's?`);
  }

  get version(): string | null {
    return this.#facts.version;
  }

  get arm(): string | null {
    return this.#facts.arm;
  }

  get feedbackToken(): string | null {
    return this.#facts.feedbackToken;
  }

  get compareWith(): string | null {
    return this.#facts.compareWith;
  }

  get requestId(): string | null {
    return this.#facts.requestId;
  }

  get #facts(): AnswerFacts {
    return facts(this.#opened.response.headers, this.#model);
  }

  /** Ends a stream that nobody reads. Inside a loop, `break` does the same. */
  async abort(): Promise<void> {
    this.#opened.idle.stop();
    if (!this.#begun) await this.#opened.response.body?.cancel().catch(() => undefined);
  }

  /** Reads to the end; the whole text. */
  async read(): Promise<string> {
    for await (const _ of this);
    return this.text;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ChatChunk, void, undefined> {
    if (this.#begun) throw new ResponseError("A stream can be read once.");
    this.#begun = true;
    const { response, idle } = this.#opened;
    const reader = response.body!.getReader();
    try {
      while (!this.#done) {
        const { done, value } = await guarded(idle, reader.read());
        if (done) break;
        idle.touch();
        yield* this.#chunks(value);
      }
    } catch (error) {
      throw idle.caller?.aborted ? error : broken(error, "The stream");
    } finally {
      idle.stop();
      await reader.cancel().catch(() => undefined);
    }
    if (!this.#done) throw new ConnectionError(`The answer broke off after ${this.text.length} characters. Ask again.`);
  }

  *#chunks(bytes: Uint8Array): Generator<ChatChunk, void, undefined> {
    for (const data of this.#decoded(bytes)) {
      if (data === "[DONE]") {
        this.#done = true;
        return;
      }
      yield this.#note(data);
    }
  }

  #decoded(bytes: Uint8Array): string[] {
    try {
      return this.#events.feed(bytes);
    } catch (error) {
      throw new ResponseError("The stream cannot be read", { cause: error });
    }
  }

  #note(data: string): ChatChunk {
    const chunk = this.#parsed(data);
    const first = chunk.choices.find(({ index }) => index === 0);
    const text = first?.delta?.content ?? "";
    this.responseId ??= chunk.id;
    this.#model ||= chunk.model;
    this.text += text;
    this.finishReason = first?.finish_reason ?? this.finishReason;
    this.usage = chunk.usage ?? this.usage;
    return { ...chunk, text };
  }

  #parsed(data: string): Omit<ChatChunk, "text"> {
    let event: unknown;
    try {
      event = JSON.parse(data);
    } catch (error) {
      throw new ResponseError("The stream holds an event that is no JSON", { cause: error });
    }
    const detail = errorDetail(event);
    if (detail) throw statusError(detail, { requestId: this.requestId });
    const chunk = event as Omit<ChatChunk, "text">;
    if (typeof chunk?.id !== "string" || !Array.isArray(chunk.choices)) {
      throw new ResponseError("The stream holds an event that is no chat chunk");
    }
    return chunk;
  }
}
