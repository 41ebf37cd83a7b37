// What the pages ask of the server, and its errors in its own words.

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

export interface KeyInfo {
  id: string;
  name: string;
  roles: string[];
}

export interface Choice {
  index: number;
  delta: { content?: string | null };
  finish_reason: string | null;
}

export interface Chunk {
  id: string;
  model: string;
  choices: Choice[];
  error?: { message: string; code?: string | null };
}

export interface Said {
  value: number | null;
  tags?: string[];
  comment?: string;
  correction?: string;
}

/** What comes with an answer: the token to rate it by where it is stored, and the model to compare it with where asked. */
export interface Beside {
  token: string | null;
  compareWith: string | null;
}

export class Api {
  constructor(
    private readonly key: string,
    private readonly session: string,
  ) {}

  private headers(more: Record<string, string> = {}): Record<string, string> {
    return { authorization: `Bearer ${this.key}`, "x-session-id": this.session, ...more };
  }

  async send(method: string, path: string, body?: unknown, more: Record<string, string> = {}): Promise<Response> {
    const given = body === undefined ? {} : { body: JSON.stringify(body) };
    const headers = this.headers(body === undefined ? more : { "content-type": "application/json", ...more });
    const answer = await fetch(path, { method, headers, ...given });
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }

  async get<T>(path: string): Promise<T> {
    return (await this.send("GET", path)).json() as Promise<T>;
  }

  async post<T>(path: string, body: unknown): Promise<T> {
    const once = { "idempotency-key": crypto.randomUUID() };
    return (await this.send("POST", path, body, once)).json() as Promise<T>;
  }

  /** A streamed chat. `heard` gets each chunk; `told`, before them, what the server says beside the answer. */
  async chat(
    body: Record<string, unknown>,
    signal: AbortSignal,
    told: (beside: Beside) => void,
    heard: (chunk: Chunk) => void,
  ): Promise<void> {
    const headers = this.headers({ "content-type": "application/json" });
    const asked = JSON.stringify({ ...body, stream: true });
    const answer = await fetch("/v1/chat/completions", { method: "POST", headers, body: asked, signal });
    if (!answer.ok || !answer.body) throw await refusal(answer);
    told({ token: answer.headers.get("x-feedback-token"), compareWith: answer.headers.get("x-compare-with") });
    for await (const { data } of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new ApiError(502, chunk.error.message, chunk.error.code ?? null);
      heard(chunk);
    }
  }

  /** Server-sent events with their names, until the server or `signal` ends them. EventSource could not send the key. */
  async follow(path: string, signal: AbortSignal, heard: (event: Sent) => void): Promise<void> {
    const answer = await fetch(path, { headers: this.headers(), signal });
    if (!answer.ok || !answer.body) throw await refusal(answer);
    for await (const event of events(answer.body)) heard(event);
  }

  /** A vote with this key. */
  vote(responseId: string, said: Said): Promise<unknown> {
    return this.post("/v1/feedback", { response_id: responseId, ...said });
  }

  /** A vote under a feedback token, for keys that may chat but not rate. Returns the token for a change of mind. */
  async voteByToken(token: string, said: Said): Promise<string | null> {
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify(said);
    const answer = await fetch(`/v1/feedback/t/${encodeURIComponent(token)}`, { method: "POST", headers, body });
    if (!answer.ok) throw await refusal(answer);
    return answer.headers.get("x-feedback-token");
  }
}

async function refusal(answer: Response): Promise<ApiError> {
  try {
    const { error } = (await answer.json()) as { error: { message: string; code: string | null } };
    return new ApiError(answer.status, error.message, error.code);
  } catch {
    return new ApiError(answer.status, `HTTP ${answer.status}`);
  }
}

/** One server-sent event. */
export interface Sent {
  name: string;
  data: string;
}

/** Server-sent events, one at a time; comments are passed over. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<Sent> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split(/\r?\n\r?\n/);
    waiting = parts.pop() ?? "";
    for (const part of parts) {
      const field = (name: string): string[] =>
        part
          .split(/\r?\n/)
          .filter((line) => line.startsWith(name))
          .map((line) => line.slice(name.length).trimStart());
      const data = field("data:");
      if (data.length) yield { name: field("event:")[0] ?? "message", data: data.join("\n") };
    }
  }
}
